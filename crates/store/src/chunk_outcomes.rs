//! What a producer prints while its run goes on: which chunks are done, and which of their targets answered.

use crate::{StoreError, Writer, address::address_text, chunk_state::chunk_state};

impl Writer {
    /// The numbers of the chunks of a run from `first` on that are done, ascending.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn done_chunks(&self, run: i64, first: u32) -> Result<Vec<u32>, StoreError> {
        let mut statement = self.connection.prepare_cached(concat!(
            "SELECT chunk FROM chunks WHERE run = ?1 AND chunk >= ?2 AND state = ",
            chunk_state!(Done),
            " ORDER BY chunk"
        ))?;
        let rows = statement.query_map((run, first), |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The targets of one chunk that answered, or with `answered` false those that did not, in their order.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn chunk_targets(
        &self,
        run: i64,
        chunk: u32,
        answered: bool,
    ) -> Result<Vec<String>, StoreError> {
        let mut statement = self.connection.prepare_cached(concat!(
            "SELECT coalesce(name, ",
            address_text!("address"),
            ") FROM results
                 WHERE run = ?1 AND chunk = ?2 AND (status <= 1) = ?3 ORDER BY position"
        ))?;
        let rows = statement.query_map((run, chunk, answered), |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}
