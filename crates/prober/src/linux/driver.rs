//! Drives the engine of one socket: runs its rounds when something arrives, when something is due, and when targets are
//! entered or given up.

use std::{
    cell::{Cell, RefCell, RefMut},
    io,
    time::Instant,
};

use socket2::Socket;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
    task::yield_now,
    time::sleep_until,
};

use super::{
    engine::{Engine, Wake},
    syscall,
};

/// A socket, its engine, and what its driver waits for.
pub(super) struct DrivenSocket {
    socket: AsyncFd<Socket>,
    engine: RefCell<Engine>,
    changed: Notify,
    has_driver: Cell<bool>,
    is_retired: Cell<bool>,
}

impl DrivenSocket {
    /// Registers the socket with the current runtime. Nothing is read before [`Self::drive`].
    pub(super) fn new(socket: Socket, engine: Engine) -> io::Result<Self> {
        Ok(Self {
            socket: syscall::watch(socket)?,
            engine: RefCell::new(engine),
            changed: Notify::new(),
            has_driver: Cell::new(false),
            is_retired: Cell::new(false),
        })
    }

    /// The engine. Call [`Self::wake`] after a change.
    pub(super) fn engine(&self) -> RefMut<'_, Engine> {
        self.engine.borrow_mut()
    }

    /// Lets the driver see a change.
    pub(super) fn wake(&self) {
        self.changed.notify_one();
    }

    /// Whether it has a driver; from now on it counts as having one.
    pub(super) fn take_driver(&self) -> bool {
        self.has_driver.replace(true)
    }

    /// Lets the driver end, or continue.
    pub(super) fn retire(&self, is_retired: bool) {
        self.is_retired.set(is_retired);
        self.wake();
    }

    /// Runs the engine until the socket is retired.
    pub(super) async fn drive(&self) -> io::Result<()> {
        while !self.is_retired.get() {
            let wake = self.engine().run_once(self.socket.get_ref());
            let deadline = match wake {
                Wake::Immediately => {
                    yield_now().await;
                    continue;
                }
                Wake::At(at) => Some(at),
                Wake::OnInput => None,
            };
            tokio::select! {
                biased;
                // Cleared before the next round reads, so that nothing that arrives in between is missed.
                ready = self.socket.ready(Interest::READABLE | Interest::ERROR) => {
                    ready?.clear_ready();
                }
                () = self.changed.notified() => {}
                () = sleep_until(deadline.unwrap_or_else(Instant::now).into()), if deadline.is_some() => {}
            }
        }
        Ok(())
    }
}
