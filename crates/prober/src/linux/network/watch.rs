//! Two threads that read what this machine's network looks like, so that no probing thread has to: with many routes or links
//! that takes a large part of a second. They are shared by all probing threads of the process in one network namespace,
//! publish what they have read, and end with the last one that uses them.
//!
//! The links are read when a probing thread asks for it; the routes when something has changed. Neither thread uses more
//! than a small part of one core, however often that is.
//!
//! Invariant: an outage of a link counts for the routes that it had. Before routes are published that were read later, the
//! links are checked with the earlier ones; and the later ones count as well, if they may have been there during the outage.

use std::{
    fs, io,
    os::linux::fs::MetadataExt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{errno::Errno, libc};
use tracing::{error, warn};

use super::{
    link_watch::{LinkStates, LinkWatch},
    netlink::NetlinkSocket,
    routes::RouteTable,
};

/// The shortest time between the beginnings of two checks of the links.
pub(super) const LINKS_INTERVAL: Duration = Duration::from_millis(20);

/// After a check of the links that took a time, the next one begins after this many times as long at the earliest, but no
/// later than [`MAX_LINKS_PAUSE`]: a process that was stopped took no longer than others.
const LINKS_PAUSE: u32 = 9;
const MAX_LINKS_PAUSE: Duration = Duration::from_secs(1);

/// The shortest time from one reading of the routes to the next.
const ROUTES_INTERVAL: Duration = Duration::from_millis(100);

/// After a reading of the routes that took a time, the next one begins after this many times as long at the earliest, but no
/// later than [`MAX_ROUTES_PAUSE`].
const ROUTES_PAUSE: u32 = 20;
const MAX_ROUTES_PAUSE: Duration = Duration::from_secs(5);

/// The routes are read again after this time, whatever the kernel reports: not every change of a next hop is a change of a
/// route.
const MAX_ROUTES_AGE: Duration = Duration::from_mins(1);

/// The kernel's reports are taken at least this often, so that they find room.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);

/// While nobody asks, the links are checked less often, if that takes long: a check takes this part of the time at most.
const IDLE_PAUSE: u32 = 100;

/// What is known of the network.
#[derive(Debug, Clone)]
pub(super) struct Published {
    pub(super) links: LinkStates,
    pub(super) routes: Arc<RouteTable>,
    /// When the reading of these routes began.
    routes_read: Instant,
    /// They have all changes from before this moment.
    pub(super) routes_known_until: Instant,
}

impl Published {
    /// Nothing is known.
    pub(super) fn nothing() -> Self {
        let now = Instant::now();
        Self {
            links: LinkStates::default(),
            routes: Arc::default(),
            routes_read: now,
            routes_known_until: now,
        }
    }
}

/// A network namespace: the device and inode of its file.
type NamespaceId = (u64, u64);

/// The threads of each network namespace that is in use.
static WATCHES: Mutex<Vec<(NamespaceId, Weak<NetworkWatch>)>> = Mutex::new(Vec::new());

/// The two threads of a network namespace.
#[derive(Debug)]
pub(super) struct NetworkWatch {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What the two threads and the probing threads share.
#[derive(Debug)]
struct Shared {
    /// Locked for moments only.
    published: Mutex<Published>,
    /// Locked while the links are read. No probing thread uses it.
    links: Mutex<LinkWatch>,
    /// Locked for moments only.
    changes: Mutex<RouteChanges>,
    /// Somebody waits for a check of the links.
    is_asked: AtomicBool,
    is_stopped: AtomicBool,
}

impl NetworkWatch {
    /// That of the calling thread's network namespace. When this returns, the network has been read once.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub(super) fn of_this_thread() -> io::Result<Arc<Self>> {
        // Without /proc nothing is shared.
        let Ok(file) = fs::metadata("/proc/thread-self/ns/net") else {
            return Self::start().map(Arc::new);
        };
        let id = (file.st_dev(), file.st_ino());
        let mut watches = lock(&WATCHES);
        let live = watches.iter().filter(|(of, _)| *of == id);
        let mut live = live.filter_map(|(_, watch)| watch.upgrade());
        if let Some(watch) = live.find(|watch| !watch.has_failed()) {
            return Ok(watch);
        }
        drop(live);
        let watch = Arc::new(Self::start()?);
        watches.retain(|(_, watch)| watch.strong_count() > 0);
        watches.push((id, Arc::downgrade(&watch)));
        Ok(watch)
    }

    fn start() -> io::Result<Self> {
        let mut links = LinkWatch::listen();
        // Before the routes are read for the first time.
        let changes = RouteChanges::listen();
        let routes_read = Instant::now();
        let read = RouteTable::read(
            &RouteTable::default(),
            &LinkStates::default().interfaces,
            || false,
        );
        let routes = Arc::new(read.unwrap_or_default());
        // After the routes: an interface that is down now still has its routes.
        let published = Published {
            links: links.check(&routes),
            routes,
            routes_read,
            routes_known_until: routes_read,
        };
        let shared = Arc::new(Shared {
            published: Mutex::new(published),
            links: Mutex::new(links),
            changes: Mutex::new(changes),
            is_asked: AtomicBool::new(false),
            is_stopped: AtomicBool::new(false),
        });
        // Dropping it ends those that have started.
        let mut watch = Self {
            shared: Arc::clone(&shared),
            threads: Vec::new(),
        };
        let of_routes = Arc::clone(&shared);
        let routes = thread::Builder::new().name("routes".to_owned());
        let routes = routes.spawn(move || of_routes.watch_routes())?;
        watch.threads.push(routes);
        let links = thread::Builder::new().name("links".to_owned());
        watch
            .threads
            .push(links.spawn(move || shared.watch_links())?);
        Ok(watch)
    }

    /// What is known now.
    ///
    /// # Panics
    /// When one of the threads has failed: then nothing new would ever be known.
    pub(super) fn published(&self) -> Published {
        assert!(
            !self.has_failed(),
            "a thread that watches the network has failed"
        );
        lock(&self.shared.published).clone()
    }

    /// Asks for a check of the links. Does not wait for it.
    pub(super) fn ask(&self) {
        if !self.shared.is_asked.swap(true, SeqCst) {
            self.wake();
        }
    }

    fn wake(&self) {
        for thread in &self.threads {
            thread.thread().unpark();
        }
    }

    /// Whether a thread has ended, which it only does after a panic.
    fn has_failed(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }
}

impl Drop for NetworkWatch {
    fn drop(&mut self) {
        self.shared.is_stopped.store(true, SeqCst);
        self.wake();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                error!("a thread that watches the network has failed");
            }
        }
    }
}

impl Shared {
    fn is_stopped(&self) -> bool {
        self.is_stopped.load(SeqCst)
    }

    /// The thread of the links.
    fn watch_links(&self) {
        let mut not_before = Instant::now();
        let mut idle_until = not_before + IDLE_INTERVAL;
        while !self.is_stopped() {
            let now = Instant::now();
            let next = if self.is_asked.load(SeqCst) {
                not_before
            } else {
                idle_until
            };
            if now < next {
                thread::park_timeout(next - now);
                continue;
            }
            // Before the check: who asks during it is not content with it.
            self.is_asked.store(false, SeqCst);
            let mut links = lock(&self.links);
            let began = Instant::now();
            let routes = lock(&self.published).routes.clone();
            let states = links.check(&routes);
            // Every change from before the check has been reported by now.
            let have_changed = lock(&self.changes).have_changed();
            let mut published = lock(&self.published);
            published.links = states;
            published.routes_known_until = if have_changed {
                published.routes_read
            } else {
                began
            };
            drop(published);
            drop(links);
            let took = began.elapsed();
            let pause = (took * LINKS_PAUSE).min(MAX_LINKS_PAUSE);
            not_before = began + LINKS_INTERVAL.max(took + pause);
            idle_until = began + IDLE_INTERVAL.max(took * IDLE_PAUSE);
        }
    }

    /// The thread of the routes.
    fn watch_routes(&self) {
        // Tables that a probing thread may still use. The last one frees a table, and that must be this thread.
        let mut earlier: Vec<Arc<RouteTable>> = Vec::new();
        while !self.is_stopped() {
            let began = Instant::now();
            let is_due = lock(&self.changes).begin_reading(began);
            if is_due {
                let before = self.read_routes(began);
                lock(&self.changes).reading_ended(began, before.is_some());
                earlier.extend(before);
            }
            earlier.retain(|table| Arc::strong_count(table) > 1);
            let wait = lock(&self.changes).wait(Instant::now());
            thread::park_timeout(wait);
        }
    }

    /// Reads the routes, and returns the table from before; `None` if they cannot be read.
    fn read_routes(&self, began: Instant) -> Option<Arc<RouteTable>> {
        let before = lock(&self.published).clone();
        let interfaces = &before.links.interfaces;
        let table = RouteTable::read(&before.routes, interfaces, || self.is_stopped())?;
        let mut links = lock(&self.links);
        links.check(&before.routes);
        let states = links.later_routes(&table, before.routes_read);
        let mut published = lock(&self.published);
        published.links = states;
        published.routes = Arc::new(table);
        published.routes_read = began;
        published.routes_known_until = published.routes_known_until.max(began);
        Some(before.routes)
    }
}

/// The kernel's reports of changes after which the routes must be read again.
#[derive(Debug)]
struct RouteChanges {
    /// `None`: changes are noticed late.
    socket: Option<NetlinkSocket>,
    /// Something has changed since the last reading began.
    has_changed: bool,
    /// Routes are being read because something has changed.
    is_being_read: bool,
    not_before: Instant,
}

impl RouteChanges {
    /// Receives reports from now on, in the network namespace of the calling thread. When a link is set down or loses an
    /// address, the kernel removes routes of IPv4 without a report of each.
    fn listen() -> Self {
        let groups = libc::RTMGRP_IPV4_ROUTE
            | libc::RTMGRP_IPV6_ROUTE
            | libc::RTMGRP_LINK
            | libc::RTMGRP_IPV4_IFADDR
            | libc::RTMGRP_IPV6_IFADDR;
        let socket = NetlinkSocket::open(groups)
            .inspect_err(|error| warn!(%error, "changes of routes are noticed late"));
        Self {
            socket: socket.ok(),
            has_changed: false,
            is_being_read: false,
            not_before: Instant::now(),
        }
    }

    fn take_reports(&mut self) {
        while let Some(socket) = &self.socket {
            match socket.receive(|_| ()) {
                // After ENOBUFS some reports are lost; that there were some is enough.
                Ok(()) | Err(Errno::ENOBUFS) => self.has_changed = true,
                Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
    }

    /// Whether something has changed since the reading of the published routes began.
    fn have_changed(&mut self) -> bool {
        self.take_reports();
        self.has_changed || self.is_being_read
    }

    /// Whether the routes are to be read now. If so, [`Self::reading_ended`] follows.
    fn begin_reading(&mut self, now: Instant) -> bool {
        self.take_reports();
        let is_due = if self.has_changed {
            now >= self.not_before
        } else {
            now >= self.not_before + MAX_ROUTES_AGE
        };
        if is_due {
            self.is_being_read = std::mem::take(&mut self.has_changed);
        }
        is_due
    }

    /// The routes that were read from `began` until now are published, or could not be read.
    fn reading_ended(&mut self, began: Instant, are_published: bool) {
        self.is_being_read = false;
        self.has_changed |= !are_published;
        let took = began.elapsed();
        let pause = if are_published {
            (took * ROUTES_PAUSE).clamp(ROUTES_INTERVAL, MAX_ROUTES_PAUSE)
        } else {
            MAX_ROUTES_PAUSE
        };
        self.not_before = began + took + pause;
    }

    /// How long nothing is to be done, unless somebody asks.
    fn wait(&self, now: Instant) -> Duration {
        let pause = self.not_before.saturating_duration_since(now);
        if self.has_changed {
            pause.min(IDLE_INTERVAL)
        } else {
            IDLE_INTERVAL
        }
    }
}

/// Locks, whether or not a thread has failed meanwhile: each change is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
