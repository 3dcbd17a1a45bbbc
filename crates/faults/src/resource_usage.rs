//! The resources of a deployment that must stay bounded (I5): its programs' memory and threads, and the database's
//! write-ahead log. Sampled while the programs run; checked at the end of a case.

use std::{
    cell::{Cell, RefCell},
    fs,
    path::{Path, PathBuf},
};

/// A larger write-ahead log was never checkpointed. SQLite does that at 4 MiB. A batch adds a few MiB at most, and so does
/// closing a run that is not large: one transaction with about 70 bytes a target (`latest`).
const MAX_WAL_BYTES: u64 = 32 << 20;

/// No role needs more here: a debug build with a full prefetch window.
const MAX_MEMORY_MIB: u64 = 256;

/// Threads of the runtime, the database, the prober and the name resolver.
const MAX_THREADS: u64 = 64;

/// The peak resources of one process.
#[derive(Debug, Clone)]
struct ProcessUsage {
    name: String,
    /// None once it has exited: then the id may belong to another process.
    pid: Option<u32>,
    memory_mib: u64,
    threads: u64,
}

/// The peak resources of all programs of a deployment, and the peak size of its write-ahead log.
#[derive(Debug)]
pub(crate) struct ResourceUsage {
    max_memory_mib: Cell<u64>,
    wal: RefCell<PathBuf>,
    peak_wal_bytes: Cell<u64>,
    processes: RefCell<Vec<ProcessUsage>>,
}

impl ResourceUsage {
    /// Starts with no programs.
    pub(crate) fn new(database: &Path) -> Self {
        let usage = Self {
            max_memory_mib: Cell::new(MAX_MEMORY_MIB),
            wal: RefCell::default(),
            peak_wal_bytes: Cell::new(0),
            processes: RefCell::default(),
        };
        usage.move_database(database);
        usage
    }

    /// Sets another path of the database.
    pub(crate) fn move_database(&self, database: &Path) {
        *self.wal.borrow_mut() = database.with_extension("db-wal");
    }

    /// Sets the most memory that a program may use.
    pub(crate) fn limit_memory(&self, mib: u64) {
        self.max_memory_mib.set(mib);
    }

    /// Registers a process. Returns its index.
    pub(crate) fn started(&self, name: &str, pid: u32) -> usize {
        let mut processes = self.processes.borrow_mut();
        processes.push(ProcessUsage {
            name: name.to_owned(),
            pid: Some(pid),
            memory_mib: 0,
            threads: 0,
        });
        processes.len() - 1
    }

    /// Records that a process has exited. To be called before its id can be reused.
    pub(crate) fn exited(&self, index: usize) {
        self.processes.borrow_mut()[index].pid = None;
    }

    /// Samples a process, and the write-ahead log, which SQLite may remove when the process exits.
    pub(crate) fn sample(&self, index: usize) {
        self.processes.borrow_mut()[index].sample();
        self.sample_wal();
    }

    /// Samples all processes and the write-ahead log.
    pub(crate) fn sample_all(&self) {
        self.processes
            .borrow_mut()
            .iter_mut()
            .for_each(ProcessUsage::sample);
        self.sample_wal();
    }

    fn sample_wal(&self) {
        let length = fs::metadata(&*self.wal.borrow()).map_or(0, |wal| wal.len());
        self.peak_wal_bytes
            .set(self.peak_wal_bytes.get().max(length));
    }

    /// The peak memory, in MiB, and the peak number of threads of the programs with this name.
    pub(crate) fn peak(&self, name: &str) -> (u64, u64) {
        let processes = self.processes.borrow();
        processes
            .iter()
            .filter(|process| process.name == name)
            .fold((0, 0), |(memory, threads), process| {
                (memory.max(process.memory_mib), threads.max(process.threads))
            })
    }

    /// The peak size of the write-ahead log.
    pub(crate) fn peak_wal_bytes(&self) -> u64 {
        self.peak_wal_bytes.get()
    }

    /// Every exceeded limit.
    pub(crate) fn exceeded_limits(&self) -> Vec<String> {
        let max_memory_mib = self.max_memory_mib.get();
        let processes = self.processes.borrow();
        let mut found: Vec<String> = processes
            .iter()
            .filter(|process| process.memory_mib > max_memory_mib || process.threads > MAX_THREADS)
            .map(|process| {
                format!(
                    "{} had {} of {max_memory_mib} MiB and {} of {MAX_THREADS} threads",
                    process.name, process.memory_mib, process.threads
                )
            })
            .collect();
        let wal = self.peak_wal_bytes.get();
        if wal > MAX_WAL_BYTES {
            found.push(format!("the write-ahead log had {wal} bytes"));
        }
        found
    }
}

impl ProcessUsage {
    /// Reads `VmHWM`, the peak resident memory (`proc(5)`). A zombie has none.
    fn sample(&mut self) {
        let Some(pid) = self.pid else {
            return;
        };
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let number = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        };
        if let (Some(kib), Some(threads)) = (number("VmHWM:"), number("Threads:")) {
            self.memory_mib = self.memory_mib.max(kib / 1024);
            self.threads = self.threads.max(threads);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceeded_memory_is_reported_after_the_process_has_exited() {
        let usage = ResourceUsage::new(Path::new("/nowhere/pingfleet.db"));
        let index = usage.started("this test", std::process::id());
        usage.sample(index);
        usage.exited(index);
        assert_eq!(usage.exceeded_limits(), Vec::<String>::new());
        let (memory, threads) = usage.peak("this test");
        assert!(memory > 0 && threads > 0, "{memory} MiB, {threads} threads");
        usage.limit_memory(memory - 1);
        assert_eq!(usage.exceeded_limits().len(), 1);
    }

    #[test]
    fn an_oversized_write_ahead_log_is_reported_after_it_was_removed() {
        let folder = tempfile::tempdir().unwrap();
        let usage = ResourceUsage::new(&folder.path().join("pingfleet.db"));
        let wal = folder.path().join("pingfleet.db-wal");
        fs::File::create(&wal)
            .unwrap()
            .set_len(MAX_WAL_BYTES + 1)
            .unwrap();
        usage.sample_all();
        fs::remove_file(wal).unwrap();
        usage.sample_all();
        assert_eq!(
            usage.exceeded_limits().len(),
            1,
            "{:?}",
            usage.exceeded_limits()
        );
    }
}
