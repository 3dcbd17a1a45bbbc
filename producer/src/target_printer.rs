//! Prints the targets of a run when their chunks are stored (`-a` and `-u`). Each chunk is printed once.

use std::io::{self, Write};

use pingfleet_store::DatabaseThread;

use crate::{PrintFilter, ProducerError};

/// Prints targets to an output.
pub(crate) struct TargetPrinter<'a> {
    filter: PrintFilter,
    out: &'a mut (dyn Write + Send),
    /// For each chunk of the run, whether it is printed.
    printed: Vec<bool>,
}

impl<'a> TargetPrinter<'a> {
    /// `printed` is what an earlier printer of the run returned.
    pub(crate) fn new(
        filter: PrintFilter,
        out: &'a mut (dyn Write + Send),
        printed: Vec<bool>,
    ) -> Self {
        Self {
            filter,
            out,
            printed,
        }
    }

    /// For each chunk of the run, whether it is printed.
    pub(crate) fn into_printed(self) -> Vec<bool> {
        self.printed
    }

    /// Prints the targets of chunks stored since the last call. Returns false when the output was closed.
    pub(crate) async fn print_new(
        &mut self,
        db: &DatabaseThread,
        run: i64,
    ) -> Result<bool, ProducerError> {
        let answered = self.filter == PrintFilter::Answered;
        for chunk in db.call(move |store| store.done_chunks(run)).await? {
            let index = chunk as usize;
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
        Ok(true)
    }
}
