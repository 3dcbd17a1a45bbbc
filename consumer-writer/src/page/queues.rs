//! How full the queues are, and whether the broker has an alarm.

use std::{sync::Arc, time::Duration};

use pingfleet_broker::{Broker, BrokerError, QueueDepth, QueueKind, QueueName};
use pingfleet_store::{Transport, now_us};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::snapshot::Look;

/// How often the depths are read while somebody looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// How often they are read for the metrics only.
const METRICS_INTERVAL: Duration = Duration::from_secs(5);

/// How often the broker is asked for an alarm. It takes a connection of its own.
const ALARM_INTERVAL: Duration = Duration::from_secs(15);

/// How long the broker may take for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How old what is known may be. While somebody looks it is read again within 11 s, also when the broker does not answer.
const MAX_AGE: Duration = Duration::from_secs(15);

/// How long a page waits for what is not known yet. A broker that is well answers much sooner.
const READ_WAIT: Duration = Duration::from_secs(2);

/// What is known of the queues.
#[derive(Debug, Clone, Default)]
pub(super) struct Queues {
    /// When it was read.
    read_at: Option<Instant>,
    /// Each queue that is there, with how full it is.
    pub(super) depths: Vec<(QueueKind, QueueDepth)>,
    /// The queues that are not there yet. A program declares those that it uses when it starts.
    pub(super) missing: Vec<QueueKind>,
    /// Why it is not known how full they are.
    pub(super) problem: Option<Problem>,
    pub(super) alarm: Alarm,
}

impl Queues {
    /// Whether it is still true. Nobody reads the queues while nobody looks.
    pub(super) fn is_current(&self) -> bool {
        self.read_at.is_some_and(|at| at.elapsed() < MAX_AGE)
    }
}

/// Waits a moment for what is known of the queues now.
pub(super) async fn wait_until_current(mut found: watch::Receiver<Queues>, look: &Look) {
    if found.borrow().is_current() {
        return;
    }
    look.want_queues();
    // If the broker takes longer, they are not known.
    drop(tokio::time::timeout(READ_WAIT, found.wait_for(Queues::is_current)).await);
}

/// Why the queues cannot be read.
#[derive(Debug, Clone)]
pub(super) struct Problem {
    pub(super) kind: ProblemKind,
    /// The error, with what the user can do.
    pub(super) text: String,
}

/// What the user has to fix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProblemKind {
    /// The broker is not reached, or does not answer. Programs go on by themselves when it does.
    Away,
    /// The broker refuses the login.
    Login,
    /// The broker does not permit it.
    Forbidden,
    /// Another setting is wrong.
    Other,
}

/// Whether the broker takes messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Alarm {
    /// It was not asked yet, or could not be asked: then the reason.
    NotKnown(Option<String>),
    /// It had no alarm at a time in microseconds since 1970-01-01 UTC.
    Clear(i64),
    /// It takes no messages, for this reason.
    Raised(String),
}

impl Default for Alarm {
    fn default() -> Self {
        Self::NotKnown(None)
    }
}

impl Alarm {
    /// The broker's reason for taking no messages.
    pub(super) fn reason(&self) -> Option<&str> {
        match self {
            Self::Raised(reason) => Some(reason),
            Self::NotKnown(_) | Self::Clear(_) => None,
        }
    }
}

/// Reads the depths until `stop`, while somebody looks or asks for the metrics.
pub(super) async fn follow(
    broker: Arc<dyn Broker>,
    transport: Transport,
    look: Arc<Look>,
    found: watch::Sender<Queues>,
    stop: CancellationToken,
) {
    let mut asked: Option<Instant> = None;
    let mut read_at: Option<Instant> = None;
    loop {
        let is_due_for_metrics = read_at.is_none_or(|at| at.elapsed() >= METRICS_INTERVAL);
        if look.is_watched() || (look.is_scraped() && is_due_for_metrics) {
            read_at = Some(Instant::now());
            let mut now = tokio::select! {
                () = stop.cancelled() => return,
                now = read(&*broker) => now,
            };
            if now.problem.is_some() {
                // Asked at once when the broker is back.
                asked = None;
            } else if transport == Transport::Broker
                && asked.is_none_or(|at| at.elapsed() >= ALARM_INTERVAL)
            {
                asked = Some(Instant::now());
                now.alarm = tokio::select! {
                    () = stop.cancelled() => return,
                    alarm = alarm(&*broker) => alarm,
                };
            } else {
                now.alarm = found.borrow().alarm.clone();
            }
            now.read_at = Some(Instant::now());
            found.send_replace(now);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = look.queues_wanted() => {}
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

/// How full the queues are. Each is read on its own: the writer does not declare the work queue.
async fn read(broker: &dyn Broker) -> Queues {
    let mut queues = Queues::default();
    let reading = async {
        for queue in QueueName::ALL {
            match broker.depth(queue).await {
                Ok(depth) => queues.depths.push((queue.kind, depth)),
                Err(BrokerError::NoTopology { .. }) => queues.missing.push(queue.kind),
                Err(error) => {
                    let problem = Problem::new(&error);
                    let is_of_this_queue =
                        matches!(problem.kind, ProblemKind::Forbidden | ProblemKind::Other);
                    queues.problem.get_or_insert(problem);
                    if !is_of_this_queue {
                        break;
                    }
                }
            }
        }
    };
    if tokio::time::timeout(ANSWER_TIMEOUT, reading).await.is_err() {
        queues.problem = Some(Problem {
            kind: ProblemKind::Away,
            text: "The broker does not answer.".to_owned(),
        });
    }
    if let Some(problem) = &queues.problem
        && problem.kind == ProblemKind::Away
    {
        // The rest of a reading is not shown as if it were all.
        queues.depths.clear();
        queues.missing.clear();
    }
    queues
}

/// Asks the broker for its alarm. A user who may not publish gets no answer.
async fn alarm(broker: &dyn Broker) -> Alarm {
    match tokio::time::timeout(ANSWER_TIMEOUT, broker.alarm(QueueName::RESULTS)).await {
        Ok(Ok(Some(reason))) => Alarm::Raised(reason),
        Ok(Ok(None)) => Alarm::Clear(now_us()),
        Ok(Err(error)) => Alarm::NotKnown(Some(error.to_string())),
        Err(_) => Alarm::NotKnown(Some("the broker does not answer".to_owned())),
    }
}

impl Problem {
    fn new(error: &BrokerError) -> Self {
        let kind = match error {
            BrokerError::Login { .. } | BrokerError::CertificateLogin { .. } => ProblemKind::Login,
            BrokerError::Forbidden { .. } => ProblemKind::Forbidden,
            BrokerError::OtherTopology { .. } | BrokerError::Tls { .. } | BrokerError::Url(_) => {
                ProblemKind::Other
            }
            BrokerError::Unreachable { .. }
            | BrokerError::Lost(_)
            | BrokerError::NoTopology { .. } => ProblemKind::Away,
        };
        let text = match error.advice() {
            Some(advice) => format!("{error}: {advice}."),
            None => format!("{error}."),
        };
        Self { kind, text }
    }

    /// Few words.
    pub(super) fn title(&self) -> &'static str {
        match self.kind {
            ProblemKind::Away => "The broker is away",
            ProblemKind::Login => "The broker refuses the login",
            ProblemKind::Forbidden => "The broker does not permit it",
            ProblemKind::Other => "The queues cannot be used",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use async_trait::async_trait;
    use pingfleet_broker::{Consumer, Publisher};
    use pingfleet_http::{EventStreams, Limits};

    use super::*;

    /// What a broker answers for a queue.
    #[derive(Debug, Clone, Copy)]
    enum Answer {
        Depth(u32),
        Missing,
        Forbidden,
        Login,
        Unreachable,
        Nothing,
    }

    /// A broker that answers for the depth of a queue, and for nothing else.
    #[derive(Debug)]
    struct Scripted(HashMap<QueueName, Answer>);

    impl Scripted {
        /// The first answers in the order in which queues are read. The others have 7 messages.
        fn new(answers: &[Answer]) -> Self {
            let queues = QueueName::ALL.into_iter();
            Self(queues.zip(answers.iter().copied()).collect())
        }
    }

    #[async_trait]
    impl Broker for Scripted {
        async fn ensure(&self, _: &[QueueName]) -> Result<(), BrokerError> {
            unreachable!("the page declares nothing")
        }

        async fn publisher(&self) -> Result<Box<dyn Publisher>, BrokerError> {
            unreachable!("the page publishes nothing")
        }

        async fn consumer(&self, _: QueueName, _: u16) -> Result<Box<dyn Consumer>, BrokerError> {
            unreachable!("the page consumes nothing")
        }

        async fn depth(&self, queue: QueueName) -> Result<QueueDepth, BrokerError> {
            let address = "127.0.0.1:5672".to_owned();
            match self.0.get(&queue).copied().unwrap_or(Answer::Depth(7)) {
                Answer::Depth(ready) => Ok(QueueDepth {
                    ready,
                    consumers: 1,
                }),
                Answer::Missing => Err(BrokerError::NoTopology {
                    address,
                    what: "a queue".to_owned(),
                }),
                Answer::Forbidden => Err(BrokerError::Forbidden {
                    address,
                    reason: "ACCESS_REFUSED".to_owned(),
                }),
                Answer::Login => Err(BrokerError::Login {
                    address,
                    user: "guest".to_owned(),
                }),
                Answer::Unreachable => Err(BrokerError::Unreachable {
                    address,
                    source: std::io::Error::from(std::io::ErrorKind::ConnectionRefused).into(),
                }),
                Answer::Nothing => std::future::pending().await,
            }
        }
    }

    async fn found(answers: &[Answer]) -> Queues {
        read(&Scripted::new(answers)).await
    }

    fn kind(queues: &Queues) -> Option<ProblemKind> {
        queues.problem.as_ref().map(|problem| problem.kind)
    }

    #[tokio::test]
    async fn each_queue_is_read_and_a_missing_one_is_no_problem() {
        let queues = found(&[Answer::Depth(3), Answer::Missing]).await;
        let first = queues
            .depths
            .first()
            .map(|(kind, depth)| (*kind, depth.ready));
        assert_eq!(first, Some((QueueName::ALL[0].kind, 3)));
        assert_eq!(queues.missing, [QueueName::ALL[1].kind]);
        assert_eq!(queues.depths.len(), QueueName::ALL.len() - 1);
        assert_eq!(kind(&queues), None);
    }

    #[tokio::test]
    async fn a_queue_that_may_not_be_read_hides_no_other_queue() {
        let queues = found(&[Answer::Forbidden]).await;
        assert_eq!(kind(&queues), Some(ProblemKind::Forbidden));
        assert_eq!(queues.depths.len(), QueueName::ALL.len() - 1);
        // The first problem is the one that is shown.
        let queues = found(&[Answer::Forbidden, Answer::Login]).await;
        assert_eq!(kind(&queues), Some(ProblemKind::Forbidden));
        assert_eq!(queues.depths.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_goes_away_while_it_is_read_has_no_queues() {
        for (answers, text) in [
            ([Answer::Depth(3), Answer::Unreachable], "cannot be reached"),
            ([Answer::Missing, Answer::Unreachable], "docker-compose"),
            ([Answer::Depth(3), Answer::Nothing], "does not answer"),
        ] {
            let queues = found(&answers).await;
            assert_eq!(kind(&queues), Some(ProblemKind::Away), "{answers:?}");
            let problem = queues.problem.map(|problem| problem.text);
            assert!(
                problem.is_some_and(|found| found.contains(text)),
                "{answers:?}"
            );
            assert!(
                queues.depths.is_empty() && queues.missing.is_empty(),
                "{answers:?}"
            );
        }
        // The control: without the second answer the first one is shown.
        assert_eq!(found(&[Answer::Depth(3)]).await.depths[0].1.ready, 3);
    }

    #[tokio::test]
    async fn a_refused_login_ends_the_reading() {
        let queues = found(&[Answer::Depth(3), Answer::Login]).await;
        assert_eq!(kind(&queues), Some(ProblemKind::Login));
        assert_eq!(queues.depths.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_look_waits_for_the_broker_and_an_old_answer_is_not_shown() {
        let stop = CancellationToken::new();
        let streams = EventStreams::new(&Limits::default(), stop.clone());
        let look = Arc::new(Look::new(streams));
        let (depths, found) = watch::channel(Queues::default());
        let broker = Arc::new(Scripted::new(&[Answer::Depth(3)]));
        let follow = follow(
            broker,
            Transport::Sweep,
            Arc::clone(&look),
            depths,
            stop.clone(),
        );
        let following = tokio::spawn(follow);
        // The control: while nobody looks, nothing is read.
        wait_until_current(found.clone(), &look).await;
        assert!(!found.borrow().is_current());
        // Nobody makes snapshots here, so this look ends without one.
        assert!(look.fresh().await.is_none());
        wait_until_current(found.clone(), &look).await;
        assert!(found.borrow().is_current());
        assert_eq!(found.borrow().depths[0].1.ready, 3);
        stop.cancel();
        following.await.unwrap();
        tokio::time::advance(MAX_AGE).await;
        assert!(!found.borrow().is_current());
    }
}
