//! Scripted answers to publishes, for each chunk, instead of storing them.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::future::{self, FutureExt};
use pingfleet_broker::{BrokerError, Confirm, Confirmed};
use tokio::sync::Semaphore;

use crate::watched::{Pass, lost};

/// The answer to one publish.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// This confirm, and nothing is stored.
    Says(Confirmed),
    /// The session breaks before the message is sent.
    Lost,
    /// The message is stored, and the session breaks before the confirm.
    ConfirmLost,
    /// The message is stored, and the confirm waits for a permit; without one it never comes.
    Waits(Arc<Semaphore>),
}

/// Answers still to be given. Without one, a publish is stored and confirmed.
#[derive(Debug, Default)]
pub(crate) struct Answers(Mutex<HashMap<u32, VecDeque<Answer>>>);

impl Answers {
    pub(crate) fn add(&self, chunk: u32, answers: impl IntoIterator<Item = Answer>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(chunk).or_default().extend(answers);
    }

    /// Answers a publish by the script.
    pub(crate) async fn give(
        &self,
        chunk: u32,
        pass: Pass<'_, Confirm>,
    ) -> Result<Confirm, BrokerError> {
        let answer = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_mut(&chunk)
            .and_then(VecDeque::pop_front);
        match answer {
            None => pass.await,
            Some(Answer::Says(confirmed)) => Ok(future::ready(Ok(confirmed)).boxed()),
            Some(Answer::Lost) => Err(lost()),
            Some(Answer::ConfirmLost) => {
                drop(pass.await?);
                Ok(future::ready(Err(lost())).boxed())
            }
            Some(Answer::Waits(permits)) => {
                let confirm = pass.await?;
                Ok(async move {
                    permits
                        .acquire()
                        .await
                        .map_err(|error| BrokerError::Lost(error.into()))?
                        .forget();
                    confirm.await
                }
                .boxed())
            }
        }
    }
}
