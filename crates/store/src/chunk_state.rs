//! The state of a chunk. Its codes stand once, in [`chunk_state!`], from which the schema and the statements take them.

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ValueRef};

/// The code of a state in the column `chunks.state`: a literal, for `concat!`.
macro_rules! chunk_state {
    (Planned) => {
        0
    };
    (Published) => {
        1
    };
    (Dead) => {
        2
    };
    (Done) => {
        3
    };
}
pub(crate) use chunk_state;

/// The state of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChunkState {
    /// It stands in the plan. No publish of it is confirmed.
    Planned = chunk_state!(Planned),
    /// The broker confirmed a publish of it.
    Published = chunk_state!(Published),
    /// The broker dead-lettered it. It is published again only when the user retries it.
    Dead = chunk_state!(Dead),
    /// Its rows are stored. No other state follows.
    Done = chunk_state!(Done),
}

impl ChunkState {
    /// All states, in order of their codes.
    pub const ALL: [Self; 4] = [Self::Planned, Self::Published, Self::Dead, Self::Done];
}

impl FromSql for ChunkState {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Ok(match value.as_i64()? {
            chunk_state!(Planned) => Self::Planned,
            chunk_state!(Published) => Self::Published,
            chunk_state!(Dead) => Self::Dead,
            chunk_state!(Done) => Self::Done,
            other => return Err(FromSqlError::OutOfRange(other)),
        })
    }
}
