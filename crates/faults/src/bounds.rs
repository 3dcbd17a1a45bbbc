//! What may grow in a fleet, and must not (I5): its programs' memory and threads, and the database's log. Looked at
//! while they are there, told at rest.

use std::{
    cell::{Cell, RefCell},
    fs,
    path::{Path, PathBuf},
};

/// A log that grew beyond this was never written back. SQLite writes back at 4 MiB; a batch is at most a few more, and
/// so is the end of a run that is not large: one transaction with about 70 bytes a target (`latest`).
const LARGEST_LOG: u64 = 32 << 20;

/// No role needs more than this here: a debug build with a full window in hand.
const MOST_MEMORY_MIB: u64 = 256;

/// The runtime's threads, the database's, the prober's, and some for resolving names.
const MOST_THREADS: u64 = 64;

/// How large a program was seen.
#[derive(Debug, Clone)]
struct Size {
    name: String,
    /// None once it has ended: then the number may be another process's.
    pid: Option<u32>,
    memory_mib: u64,
    threads: u64,
}

/// The largest sizes of all programs of a fleet, and of its log.
#[derive(Debug)]
pub(crate) struct Bounds {
    memory_mib: Cell<u64>,
    log: RefCell<PathBuf>,
    longest_log: Cell<u64>,
    sizes: RefCell<Vec<Size>>,
}

impl Bounds {
    /// Of a fleet without programs, whose database is `database`.
    pub(crate) fn new(database: &Path) -> Self {
        let bounds = Self {
            memory_mib: Cell::new(MOST_MEMORY_MIB),
            log: RefCell::default(),
            longest_log: Cell::new(0),
            sizes: RefCell::default(),
        };
        bounds.move_database(database);
        bounds
    }

    /// From now on the database is this one.
    pub(crate) fn move_database(&self, database: &Path) {
        *self.log.borrow_mut() = database.with_extension("db-wal");
    }

    /// From now on a program may have this much memory at most.
    pub(crate) fn bound_memory(&self, mib: u64) {
        self.memory_mib.set(mib);
    }

    /// A program was started. Returns its place.
    pub(crate) fn started(&self, name: &str, pid: u32) -> usize {
        let mut sizes = self.sizes.borrow_mut();
        sizes.push(Size {
            name: name.to_owned(),
            pid: Some(pid),
            memory_mib: 0,
            threads: 0,
        });
        sizes.len() - 1
    }

    /// The program at this place has ended, and nobody has its number yet.
    pub(crate) fn ended(&self, place: usize) {
        self.sizes.borrow_mut()[place].pid = None;
    }

    /// Looks at the program at this place, and at the log, which may end with it.
    pub(crate) fn look(&self, place: usize) {
        self.sizes.borrow_mut()[place].look();
        self.look_at_log();
    }

    /// Looks at everything.
    pub(crate) fn look_at_all(&self) {
        self.sizes.borrow_mut().iter_mut().for_each(Size::look);
        self.look_at_log();
    }

    fn look_at_log(&self) {
        let length = fs::metadata(&*self.log.borrow()).map_or(0, |log| log.len());
        self.longest_log.set(self.longest_log.get().max(length));
    }

    /// The most memory, in MiB, and the most threads that a program of this name was seen with.
    pub(crate) fn largest(&self, name: &str) -> (u64, u64) {
        let sizes = self.sizes.borrow();
        sizes
            .iter()
            .filter(|size| size.name == name)
            .fold((0, 0), |(memory, threads), size| {
                (memory.max(size.memory_mib), threads.max(size.threads))
            })
    }

    /// The most bytes that the log was seen with.
    pub(crate) fn longest_log(&self) -> u64 {
        self.longest_log.get()
    }

    /// What was seen beyond its bound.
    pub(crate) fn exceeded(&self) -> Vec<String> {
        let most = self.memory_mib.get();
        let sizes = self.sizes.borrow();
        let mut found: Vec<String> = sizes
            .iter()
            .filter(|size| size.memory_mib > most || size.threads > MOST_THREADS)
            .map(|size| {
                format!(
                    "{} had {} of {most} MiB and {} of {MOST_THREADS} threads",
                    size.name, size.memory_mib, size.threads
                )
            })
            .collect();
        let log = self.longest_log.get();
        if log > LARGEST_LOG {
            found.push(format!("the database's log had {log} bytes"));
        }
        found
    }
}

impl Size {
    /// `VmHWM` is the most memory so far (`proc(5)`). One that has ended and was not waited for has none.
    fn look(&mut self) {
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
    fn what_was_too_large_is_told_after_its_end() {
        let bounds = Bounds::new(Path::new("/nowhere/pingfleet.db"));
        let place = bounds.started("this test", std::process::id());
        bounds.look(place);
        bounds.ended(place);
        assert_eq!(bounds.exceeded(), Vec::<String>::new());
        let (memory, threads) = bounds.largest("this test");
        assert!(memory > 0 && threads > 0, "{memory} MiB, {threads} threads");
        bounds.bound_memory(memory - 1);
        assert_eq!(bounds.exceeded().len(), 1);
    }

    #[test]
    fn a_log_that_was_too_long_is_told_when_it_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let bounds = Bounds::new(&folder.path().join("pingfleet.db"));
        let log = folder.path().join("pingfleet.db-wal");
        fs::File::create(&log)
            .unwrap()
            .set_len(LARGEST_LOG + 1)
            .unwrap();
        bounds.look_at_all();
        fs::remove_file(log).unwrap();
        bounds.look_at_all();
        assert_eq!(bounds.exceeded().len(), 1, "{:?}", bounds.exceeded());
    }
}
