//! The queues: purged, deleted, unbound and full.

use anyhow::{Context, ensure};
use lapin::{Connection, ConnectionProperties, types::FieldTable};

use super::broker::{believing, done};
use crate::{
    actions,
    deployment::Deployment,
    runner::{Case, CaseOutcome, CaseRunner, Control, Variant},
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "queues-purged",
        fault: "`work` and `results` purged in a running sweep",
        holds: "the waiting producer publishes the overdue chunks from the database",
        control: Control {
            defect: "no waiting producer",
            expected_violations: &["are lost"],
        },
        run: |runner, variant| lost_queues(runner, variant, "purge_queue"),
    },
    Case {
        name: "queues-deleted",
        fault: "`work` and `results` deleted in a running sweep",
        holds: "the roles declare them again; the waiting producer publishes the overdue chunks",
        control: Control {
            defect: "no waiting producer",
            expected_violations: &["are lost"],
        },
        run: |runner, variant| lost_queues(runner, variant, "delete_queue"),
    },
    Case {
        name: "results-unbound",
        fault: "the binding of `results` removed in a running sweep: its messages are unroutable",
        holds: "the worker does not count a returned result as stored; it binds the queue, and publishes the result again",
        control: Control {
            defect: "a worker that treats every sent result as confirmed",
            expected_violations: &["are lost"],
        },
        run: unbound,
    },
    Case {
        name: "results-refused",
        fault: "a policy limits `results` to five messages while the writer is down: the broker rejects the rest",
        holds: "the worker keeps each rejected result, and publishes the same bytes again; nothing is probed again",
        control: Control {
            defect: "a worker that treats every sent result as confirmed",
            expected_violations: &["are lost"],
        },
        run: refused,
    },
];

fn lost_queues(
    runner: &mut CaseRunner,
    variant: Variant,
    command: &str,
) -> anyhow::Result<CaseOutcome> {
    runner.with_deployment(|deployment| {
        let _writer = actions::start_writer(deployment)?;
        let _worker = actions::start_worker(
            deployment,
            "worker",
            &["--delay", "200ms", "--prefetch", "4"],
        )?;
        let detach: &[&str] = match variant {
            Variant::Normal => &[],
            Variant::Control => &["--detach"],
        };
        let producer = actions::start_producer(deployment, 2000, 10, detach)?;
        deployment.wait_for_run("first results", |run| run.chunks_done >= 20)?;
        for queue in ["work", "results"] {
            let queue = deployment.queue(queue);
            deployment.broker()?.ctl(&[command, &queue])?;
        }
        ensure!(producer.wait()?.success(), "the producer failed");
        deployment.wait_until_idle()?;
        let again = deployment.sqlite3("select count(*) from chunks where publishes > 1")?;
        ensure!(
            variant == Variant::Control || again != "0",
            "the queues were lost too late: no chunk was published again"
        );
        let counted = deployment.sqlite3("select republished from runs")?;
        let outcome = done(deployment, format!("{again} of 200 chunks published again"))?;
        let (again, counted): (i64, i64) = (again.parse()?, counted.parse()?);
        ensure!(
            counted >= again,
            "{counted} counted, and {again} published again"
        );
        Ok(outcome)
    })
}

/// What a worker logs when the broker refuses a result.
const REFUSED: &str = "message refused";

/// Removes the binding of `results`.
fn unbind(deployment: &Deployment) -> anyhow::Result<()> {
    let url = deployment.broker()?.url();
    let queue = deployment.queue("results");
    let exchange = deployment.queue("x.results");
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?
        .block_on(async {
            let properties = ConnectionProperties::default();
            let url = url.trim_end_matches('/');
            let connection = Connection::connect(url, properties).await?;
            let channel = connection.create_channel().await?;
            let (name, exchange) = (queue.as_str(), exchange.as_str());
            channel
                .queue_unbind(
                    name.into(),
                    exchange.into(),
                    name.into(),
                    FieldTable::default(),
                )
                .await?;
            connection.close(200, "done".into()).await
        })
        .context("cannot unbind the queue")
}

fn unbound(runner: &mut CaseRunner, variant: Variant) -> anyhow::Result<CaseOutcome> {
    runner.with_deployment(|deployment| {
        let _writer = actions::start_writer(deployment)?;
        let mut flags = vec!["--delay", "100ms", "--prefetch", "4"];
        flags.extend(believing(variant));
        actions::publish_run(deployment, 2000, 10)?;
        let worker = actions::start_worker(deployment, "worker", &flags)?;
        deployment.wait_for_run("first results", |run| run.chunks_done >= 20)?;
        unbind(deployment)?;
        deployment.wait_until_idle()?;
        let bound_again = worker.output().contains("no queue is bound");
        ensure!(
            variant == Variant::Control || bound_again,
            "nothing was returned: {}",
            worker.output()
        );
        done(
            deployment,
            "a result was returned, and stored later".to_owned(),
        )
    })
}

fn refused(runner: &mut CaseRunner, variant: Variant) -> anyhow::Result<CaseOutcome> {
    runner.with_deployment(|deployment| {
        actions::publish_run(deployment, 400, 10)?;
        let pattern = format!("^{}$", deployment.queue("results"));
        let policy = r#"{"max-length":5,"overflow":"reject-publish"}"#;
        let name = deployment.queue("bound");
        deployment.broker()?.ctl(&[
            "set_policy",
            "--apply-to",
            "queues",
            &name,
            &pattern,
            policy,
        ])?;
        // The worker logs each chunk only with -v.
        let mut flags = vec!["-v"];
        flags.extend(believing(variant));
        let mut worker = actions::start_worker(deployment, "worker", &flags)?;
        if variant == Variant::Normal {
            worker.wait_for_output(REFUSED)?;
        } else {
            // All work is acked, although most results were rejected.
            actions::wait_for_results(deployment, 5)?;
            let work = deployment.queue("work");
            deployment.wait_for_empty_queue(&work)?;
        }
        let _writer = actions::start_writer(deployment)?;
        deployment.wait_until_idle()?;
        deployment.broker()?.ctl(&["clear_policy", &name])?;
        let output = worker.output();
        let mut outcome = done(
            deployment,
            format!("{} rejections", output.matches(REFUSED).count()),
        )?;
        let probed = output.matches("chunk taken").count();
        if probed != 40 {
            outcome
                .violations
                .push(format!("{probed} chunks taken instead of 40"));
        }
        actions::terminate_cleanly(worker)?;
        Ok(outcome)
    })
}
