//! Prints the targets of a run when their chunks are stored (`-a` and `-u`). Each chunk is printed once.

use std::{
    collections::VecDeque,
    io::{self, Write},
};

use pingfleet_store::DatabaseThread;

use crate::{PrintFilter, ProducerError};

/// The chunks of a run that are printed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PrintedChunks {
    /// All chunks below this one are printed.
    first: u32,
    /// For each chunk from `first` on, whether it is printed.
    others: VecDeque<bool>,
}

impl PrintedChunks {
    /// Notes that a chunk from `first` on is printed. Returns whether it was not before.
    fn insert(&mut self, chunk: u32) -> bool {
        let index = (chunk - self.first) as usize;
        if index >= self.others.len() {
            self.others.resize(index + 1, false);
        }
        !std::mem::replace(&mut self.others[index], true)
    }

    /// Raises `first` to the first chunk that is not printed.
    fn advance(&mut self) {
        while self.others.front() == Some(&true) {
            self.others.pop_front();
            self.first += 1;
        }
    }
}

/// Prints targets to an output.
pub(crate) struct TargetPrinter<'a> {
    filter: PrintFilter,
    out: &'a mut (dyn Write + Send),
    printed: PrintedChunks,
}

impl<'a> TargetPrinter<'a> {
    /// `printed` is what an earlier printer of the run returned.
    pub(crate) fn new(
        filter: PrintFilter,
        out: &'a mut (dyn Write + Send),
        printed: PrintedChunks,
    ) -> Self {
        Self {
            filter,
            out,
            printed,
        }
    }

    /// The chunks that are printed.
    pub(crate) fn into_printed(self) -> PrintedChunks {
        self.printed
    }

    /// Prints the targets of chunks stored since the last call. Returns false when the output was closed.
    pub(crate) async fn print_new(
        &mut self,
        db: &DatabaseThread,
        run: i64,
    ) -> Result<bool, ProducerError> {
        let answered = self.filter == PrintFilter::Answered;
        let first = self.printed.first;
        for chunk in db.call(move |store| store.done_chunks(run, first)).await? {
            if !self.printed.insert(chunk) {
                continue;
            }
            let targets = db
                .call(move |store| store.chunk_targets(run, chunk, answered))
                .await?;
            let mut text = targets.join("\n");
            if !text.is_empty() {
                text.push('\n');
            }
            let written = self
                .out
                .write_all(text.as_bytes())
                .and_then(|()| self.out.flush());
            match written {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(false),
                written => written.map_err(ProducerError::Print)?,
            }
        }
        self.printed.advance();
        Ok(true)
    }
}
