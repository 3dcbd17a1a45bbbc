//! Chunks, results and socket tables as files of a folder, through which a test and its inner process communicate.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::future::try_join_all;
use pingfleet_prober::probe_threads::ProbeThreads;
use pingfleet_wire::{ChunkKey, Message, Probing, ResultChunk, Target, Token, Version, WorkChunk};
use tokio::time::sleep;
use uuid::Uuid;

/// The kernel's tables of datagram and raw sockets.
pub(crate) const SOCKET_TABLES: [&str; 4] = ["icmp", "icmp6", "raw", "raw6"];

/// Writes a chunk. All chunks of a folder belong to one run.
pub(crate) fn write_chunk(
    folder: &Path,
    number: usize,
    probing: Probing,
    targets: Vec<Target>,
) -> anyhow::Result<()> {
    let chunk = WorkChunk {
        version: Version,
        database: Uuid::nil(),
        key: ChunkKey {
            run: Uuid::from_u128(1),
            chunk: number as u32,
        },
        token: Token(Uuid::nil()),
        probing,
        targets,
    };
    Ok(fs::write(chunk_file(folder, number), chunk.encode())?)
}

/// Probes all chunks of a folder at once, or each so much later than the one before. Writes each result when its chunk is
/// done, and the socket tables at the end.
pub(crate) async fn probe_all(
    folder: &Path,
    threads: &ProbeThreads,
    between: Duration,
) -> anyhow::Result<()> {
    let mut chunks = Vec::new();
    while let Ok(bytes) = fs::read(chunk_file(folder, chunks.len())) {
        chunks.push(Arc::new(WorkChunk::decode(&bytes)?));
    }
    let probed = chunks.into_iter().enumerate().map(async |(number, chunk)| {
        sleep(between * number as u32).await;
        let probed = threads.probe(Arc::clone(&chunk)).await?;
        let result = ResultChunk {
            version: Version,
            database: chunk.database,
            key: chunk.key,
            token: chunk.token,
            worker: "test".to_owned(),
            redelivered: false,
            started_at_us: probed.started_at_us,
            outcomes: probed.outcomes,
        };
        fs::write(result_file(folder, number), result.encode())?;
        anyhow::Ok(())
    });
    try_join_all(probed).await?;
    let tables =
        SOCKET_TABLES.map(|table| fs::read_to_string(format!("/proc/thread-self/net/{table}")));
    let tables: Vec<_> = tables.into_iter().collect::<Result<_, _>>()?;
    Ok(fs::write(sockets_file(folder), tables.concat())?)
}

/// The result of a chunk.
pub(crate) fn read_result(folder: &Path, number: usize) -> anyhow::Result<ResultChunk> {
    Ok(ResultChunk::decode(&fs::read(result_file(
        folder, number,
    ))?)?)
}

/// The socket tables at the end of the probing.
pub(crate) fn read_sockets(folder: &Path) -> anyhow::Result<String> {
    Ok(fs::read_to_string(sockets_file(folder))?)
}

fn chunk_file(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("{number}.work"))
}

/// The file of a result. Its time is that of the chunk's end.
pub(crate) fn result_file(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("{number}.result"))
}

fn sockets_file(folder: &Path) -> PathBuf {
    folder.join("sockets")
}
