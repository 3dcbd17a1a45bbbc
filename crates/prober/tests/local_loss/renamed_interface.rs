//! An interface is removed, and another one gets its name.

use std::{env, num::NonZeroUsize, process::Command, sync::Arc, time::Duration};

use anyhow::ensure;
use hickory_resolver::config::{ResolverConfig, ResolverOpts};
use pingfleet_prober::{
    linux::LinuxPing, probe_threads::ProbeThreads, prober::OpenProber, resolve::Resolver,
};
use pingfleet_testbed::simnet::IpVersion;
use pingfleet_wire::{ChunkKey, Outcome, Probing, Status, Token, Version, WorkChunk};
use uuid::Uuid;

use crate::{
    expectations::all,
    pair,
    variants::{Network, addresses},
};

#[test]
fn a_socket_does_not_outlive_the_interface_that_it_is_bound_to() -> anyhow::Result<()> {
    let pair = pair::make()?;
    let program = env::current_exe()?;
    let mut inner = Network::command(&pair, program.to_str().expect("a path of text"));
    let output = inner
        .args([
            "--exact",
            "renamed_interface::inner",
            "--ignored",
            "--nocapture",
        ])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    // A test filter without a match also succeeds.
    let passed = output.status.success() && text.contains("1 passed");
    ensure!(passed, "{text}{errors}");
    Ok(())
}

#[tokio::test]
#[ignore = "runs in the network that another test makes for it"]
async fn inner() -> anyhow::Result<()> {
    let both = [LinuxPing::new(), LinuxPing::raw()].map(|opener| {
        let opener: Arc<dyn OpenProber> = Arc::new(opener);
        let resolver = Resolver::with_servers(ResolverConfig::default(), ResolverOpts::default());
        ProbeThreads::start(NonZeroUsize::MIN, &opener, None, resolver)
    });
    // With the same gateway as the later one.
    sh("ip link add probe0 type veth peer name probe1
        ip link set probe0 up
        ip route add default via 169.254.77.2 dev probe0 metric 500 onlink")?;
    let mut threads = Vec::new();
    for started in both {
        let started = started?;
        let outcomes = probe(&started).await?;
        all(&outcomes, |outcome| outcome.status != Status::Up)?;
        threads.push(started);
    }
    sh("ip link del probe0; ip link set veth0 name probe0")?;
    for threads in threads {
        let outcomes = probe(&threads).await?;
        all(&outcomes, |outcome| outcome.status == Status::Up)?;
        threads.close();
    }
    Ok(())
}

/// Probes some answering targets by the interface.
async fn probe(threads: &ProbeThreads) -> anyhow::Result<Vec<Outcome>> {
    let chunk = WorkChunk {
        version: Version,
        database: Uuid::nil(),
        key: ChunkKey {
            run: Uuid::from_u128(1),
            chunk: 0,
        },
        token: Token(Uuid::nil()),
        probing: Probing {
            retries: 0,
            timeout: Duration::from_millis(300),
            interface: Some("probe0".to_owned()),
            ..Probing::default()
        },
        targets: addresses(pair::living(IpVersion::V4), 10),
    };
    Ok(threads.probe(Arc::new(chunk)).await?.outcomes)
}

fn sh(script: &str) -> anyhow::Result<()> {
    let status = Command::new("sh").args(["-e", "-c", script]).status()?;
    ensure!(status.success(), "{script}");
    Ok(())
}
