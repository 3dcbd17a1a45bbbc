//! Prints the targets of a run when their chunks are stored (`-a` and `-u`). Each chunk is printed once.

use std::{
    collections::VecDeque,
    io::{self, Write},
};

use pingfleet_store::DatabaseThread;

use crate::{PrintFilter, ProducerError};

/// Prints targets to an output.
pub(crate) struct TargetPrinter<'a> {
    filter: PrintFilter,
    out: &'a mut (dyn Write + Send),
    /// All chunks below this one are printed.
    first: u32,
    /// For each chunk from `first` on, whether it is printed.
    printed: VecDeque<bool>,
}

impl<'a> TargetPrinter<'a> {
    pub(crate) fn new(filter: PrintFilter, out: &'a mut (dyn Write + Send)) -> Self {
        Self {
            filter,
            out,
            first: 0,
            printed: VecDeque::new(),
        }
    }

    /// Prints the targets of chunks stored since the last call. Returns false when the output was closed.
    pub(crate) async fn print_new(
        &mut self,
        db: &DatabaseThread,
        run: i64,
    ) -> Result<bool, ProducerError> {
        let answered = self.filter == PrintFilter::Answered;
        let first = self.first;
        for chunk in db.call(move |store| store.done_chunks(run, first)).await? {
            let index = (chunk - first) as usize;
            if index >= self.printed.len() {
                self.printed.resize(index + 1, false);
            }
            if std::mem::replace(&mut self.printed[index], true) {
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
        while self.printed.front() == Some(&true) {
            self.printed.pop_front();
            self.first += 1;
        }
        Ok(true)
    }
}
