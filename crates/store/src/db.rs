//! The database on a thread of its own, for asynchronous callers. SQLite blocks its thread, and the heartbeats of the
//! broker's connections must not wait for it.

use std::{panic::AssertUnwindSafe, path::Path, thread::JoinHandle, time::Instant};

use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use crate::{OpenOptions, StoreError, Writer, check::BackgroundCheck};

/// How long [`DatabaseThread::call_while_busy`] waits for another program's lock.
const BUSY_LIMIT_MINUTES: u64 = 15;

type Call = Box<dyn FnOnce(&mut Writer) + Send>;

/// A handle of the database's thread. The thread ends with [`Self::close`] or when the handle is dropped.
#[derive(Debug)]
pub struct DatabaseThread {
    calls: mpsc::Sender<Call>,
    thread: Option<JoinHandle<Result<(), StoreError>>>,
    database: Uuid,
    path: std::path::PathBuf,
    check: Option<BackgroundCheck>,
}

impl DatabaseThread {
    /// Opens the database on a new thread. If the options want a check of a large file, it runs beside the work.
    ///
    /// # Errors
    /// As [`OpenOptions::open`].
    pub async fn open(options: OpenOptions) -> Result<Self, StoreError> {
        // Each caller awaits its call, so the queue holds at most one call for each caller.
        let (calls, mut queue) = mpsc::channel::<Call>(16);
        let (opened, opening) = oneshot::channel();
        let path = options.path.clone();
        let cannot = |reason: String| StoreError::CannotOpen {
            path: options.path.clone(),
            reason,
        };
        let open = options.clone();
        let thread = std::thread::Builder::new()
            .name("database".to_owned())
            .spawn(move || {
                let mut store = match open.open() {
                    Ok(store) => store,
                    Err(error) => {
                        // The receiver is gone only when the caller's future was dropped.
                        drop(opened.send(Err(error)));
                        return Ok(());
                    }
                };
                if opened.send(Ok(store.database())).is_err() {
                    return store.close();
                }
                while let Some(call) = queue.blocking_recv() {
                    call(&mut store);
                }
                store.close()
            })
            .map_err(|error| cannot(error.to_string()))?;
        let database = opening
            .await
            .map_err(|_| cannot("its thread ended".to_owned()))??;
        let mut db = Self {
            calls,
            thread: Some(thread),
            database,
            path,
            check: None,
        };
        if options.check
            && let Some(due) = db.call(|store| store.due_check()).await?
        {
            db.check = Some(BackgroundCheck::start(&db.path, due)?);
        }
        Ok(db)
    }

    /// The UUID of the database.
    #[must_use]
    pub fn database(&self) -> Uuid {
        self.database
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the check for damage beside the work has ended. `None` when none was due.
    #[must_use]
    pub fn has_check_ended(&self) -> Option<bool> {
        self.check.as_ref().map(BackgroundCheck::has_ended)
    }

    /// Runs a function on the database's thread. Not cancel-safe: once called, the function runs to its end.
    ///
    /// # Errors
    /// What the function returns; [`StoreError::Closed`] when it panicked or the thread has ended;
    /// [`StoreError::Corrupt`] once the check beside the work has found damage.
    pub async fn call<T: Send + 'static>(
        &self,
        body: impl FnOnce(&mut Writer) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        if let Some(check) = &self.check {
            check.watch()?;
        }
        let (answer, answered) = oneshot::channel();
        let call: Call = Box::new(move |store| {
            // A panic drops the answer: the caller gets `Closed`, and the transaction was rolled back.
            if let Ok(value) = std::panic::catch_unwind(AssertUnwindSafe(|| body(store))) {
                drop(answer.send(value));
            }
        });
        self.calls
            .send(call)
            .await
            .map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }

    /// Like [`Self::call`], but repeats the call as long as another program holds the database's lock, with a warning each
    /// time.
    ///
    /// # Errors
    /// As [`Self::call`]; [`StoreError::BusyTooLong`] after 15 minutes.
    pub async fn call_while_busy<T: Send + 'static>(
        &self,
        body: impl Fn(&mut Writer) -> Result<T, StoreError> + Clone + Send + 'static,
    ) -> Result<T, StoreError> {
        let began = Instant::now();
        loop {
            match self.call(body.clone()).await {
                Err(error) if error.is_transient() => {
                    let minutes = began.elapsed().as_secs() / 60;
                    if minutes >= BUSY_LIMIT_MINUTES {
                        return Err(StoreError::BusyTooLong { minutes });
                    }
                    tracing::warn!(%error, "the database is locked by another program; waiting");
                }
                done => return done,
            }
        }
    }

    /// Waits for the running calls, ends the check, writes the log back and closes the file.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`] of the last checkpoint. Committed data is safe all the same. [`StoreError::Corrupt`] when the
    /// check has found damage.
    pub async fn close(mut self) -> Result<(), StoreError> {
        let checked = match self.check.take() {
            // Before the file is closed: the check has a snapshot, and the log can be written back only after it.
            Some(check) => tokio::task::spawn_blocking(|| check.stop())
                .await
                .map_err(|_| StoreError::Closed)?,
            None => Ok(None),
        };
        let checked = match checked {
            Ok(Some(done)) => {
                let recorded = self.call(move |store| store.record_check(&done)).await;
                if let Err(error) = recorded {
                    tracing::debug!(%error, "the check of the database stays due");
                }
                Ok(())
            }
            checked => checked.map(drop),
        };
        let (calls, _) = mpsc::channel(1);
        drop(std::mem::replace(&mut self.calls, calls));
        let Some(thread) = self.thread.take() else {
            return checked;
        };
        let closed = tokio::task::spawn_blocking(move || thread.join())
            .await
            .map_err(|_| StoreError::Closed)?
            .map_err(|_| StoreError::Closed)?;
        checked.and(closed)
    }
}
