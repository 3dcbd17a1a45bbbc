//! The database's thread: a failed call affects only its caller, and every call that was sent is executed.

use std::{
    cell::RefCell,
    future::{Future, ready},
    path::PathBuf,
    pin::Pin,
    sync::mpsc::{Receiver, Sender, channel},
};

use anyhow::{Result, bail, ensure};
use pingfleet_store::{DatabaseThread, Reader, StoreError, Transport};
use tempfile::TempDir;

use crate::sample::{options, plan};

async fn open() -> Result<(TempDir, PathBuf, DatabaseThread)> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    let db = DatabaseThread::open(options(&path)).await?;
    Ok((folder, path, db))
}

/// Lets a future begin; whether it has ended with that.
async fn begins<F: Future>(future: Pin<&mut F>) -> bool {
    tokio::select! {
        biased;
        _ = future => true,
        () = ready(()) => false,
    }
}

#[tokio::test]
async fn a_panic_reaches_only_its_caller() -> Result<()> {
    let (_folder, _path, db) = open().await?;
    let (panicking, working) = tokio::join!(
        db.call(|store| -> Result<(), StoreError> {
            // Half of a change is made, and must not be found later.
            let planned = store.begin_run(&pingfleet_store::NewRun {
                transport: Transport::Sweep,
                source: String::new(),
                probing: "{}".to_owned(),
                seed: None,
                worst_chunk: std::time::Duration::ZERO,
                parent_run: None,
            })?;
            panic!("a test's own panic in run {}", planned.run);
        }),
        db.call(|store| store.find_run("latest")),
    );
    ensure!(matches!(panicking, Err(StoreError::Closed)));
    ensure!(working? == 1);
    db.call(|store| {
        store.try_commit()?;
        store.remove_abandoned_plans()
    })
    .await?;
    db.close().await?;
    Ok(())
}

#[tokio::test]
async fn the_error_of_a_call_is_its_own() -> Result<()> {
    let (_folder, _path, db) = open().await?;
    let missing = db.call(|store| store.summary(7)).await;
    ensure!(matches!(missing, Err(StoreError::NoSuchRun { .. })));
    db.call(pingfleet_store::Writer::try_commit).await?;
    Ok(())
}

#[tokio::test]
async fn a_file_that_cannot_be_opened_is_an_error() -> Result<()> {
    let folder = TempDir::new()?;
    match DatabaseThread::open(options(folder.path())).await {
        Err(StoreError::CannotOpen { .. }) => Ok(()),
        other => bail!("{other:?}"),
    }
}

#[tokio::test]
async fn closing_waits_for_the_calls_under_way() -> Result<()> {
    let (_folder, path, db) = open().await?;
    let (open_gate, gate) = channel::<()>();
    {
        let mut first = Box::pin(db.call(move |store| {
            gate.recv().expect("the gate opens");
            Ok(plan(store, Transport::Sweep, &[1]).map(drop))
        }));
        let mut second =
            Box::pin(db.call(|store| Ok(plan(store, Transport::Sweep, &[1]).map(drop))));
        ensure!(!begins(first.as_mut()).await && !begins(second.as_mut()).await);
        // Both callers leave without an answer.
    }
    let mut closing = Box::pin(db.close());
    ensure!(
        !begins(closing.as_mut()).await,
        "closed with a call under way"
    );
    open_gate.send(())?;
    closing.await?;
    ensure!(Reader::open(&path)?.summaries()?.len() == 2);
    Ok(())
}

struct Last(Sender<()>);

thread_local! {
    static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
}

/// Notices the end of the database's thread: its thread-local value is dropped last.
async fn end_of_thread(db: &DatabaseThread) -> Result<Receiver<()>> {
    let (kept, ended) = channel();
    db.call(move |_| {
        LAST.with_borrow_mut(|last| {
            let Last(_sender) = last.insert(Last(kept));
        });
        Ok(())
    })
    .await?;
    Ok(ended)
}

#[tokio::test]
async fn a_dropped_handle_ends_the_thread_and_closes_the_file() -> Result<()> {
    let (folder, _path, db) = open().await?;
    db.call(pingfleet_store::Writer::try_commit).await?;
    let ended = end_of_thread(&db).await?;
    ensure!(ended.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty));
    drop(db);
    ensure!(ended.recv().is_err());
    ensure!(std::fs::read_dir(folder.path())?.count() == 1);
    Ok(())
}

#[tokio::test]
async fn closing_ends_the_thread() -> Result<()> {
    let (folder, _path, db) = open().await?;
    db.call(pingfleet_store::Writer::try_commit).await?;
    let ended = end_of_thread(&db).await?;
    db.close().await?;
    ensure!(ended.try_recv() == Err(std::sync::mpsc::TryRecvError::Disconnected));
    ensure!(std::fs::read_dir(folder.path())?.count() == 1);
    Ok(())
}

#[tokio::test]
async fn a_call_while_busy_returns_errors_that_waiting_does_not_fix() -> Result<()> {
    let (_folder, _path, db) = open().await?;
    let missing = db.call_while_busy(|store| store.summary(7)).await;
    ensure!(matches!(missing, Err(StoreError::NoSuchRun { .. })));
    Ok(())
}
