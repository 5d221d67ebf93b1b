//! The threads that device code runs on.

use std::fmt;
use std::io;
use std::sync::{Arc, mpsc};
use std::thread::{Builder, JoinHandle};

/// What a thread does, and so which system calls it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ThreadKind {
    /// The one event loop of all devices that have little to do.
    Devices,
    /// The event loop of a block device, and the threads that wait for its file.
    Block,
    /// Of a network interface.
    Net,
    /// Of the vsock device.
    Vsock,
    /// Of a virtio-fs device.
    Fs,
}

impl ThreadKind {
    /// What its threads are called, at most 8 letters so that a number has room in the kernel's 15.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Devices => "devices",
            Self::Block => "block",
            Self::Net => "net",
            Self::Vsock => "vsock",
            Self::Fs => "fs",
        }
    }
}

/// What runs first on a new thread.
type Hook = dyn Fn(ThreadKind) -> io::Result<()> + Send + Sync;

/// Starts the threads of devices. Each runs a hook first, which installs its system call filter.
#[derive(Clone)]
pub struct Threads {
    hook: Arc<Hook>,
}

impl fmt::Debug for Threads {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Threads").finish_non_exhaustive()
    }
}

impl Default for Threads {
    /// Threads without a hook.
    fn default() -> Self {
        Self::new(|_| Ok(()))
    }
}

impl Threads {
    /// Threads that run `hook` before anything else.
    pub fn new(hook: impl Fn(ThreadKind) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self { hook: Arc::new(hook) }
    }

    /// Starts a thread that does `body`, and waits until its hook has run. Not for vCPU threads: what they start would
    /// have their filter too.
    ///
    /// # Errors
    /// The kernel has no thread to give, or the hook failed; `body` does not run then.
    pub fn spawn(
        &self,
        kind: ThreadKind,
        name: String,
        body: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let hook = Arc::clone(&self.hook);
        let (sender, receiver) = mpsc::sync_channel(1);
        let thread = Builder::new().name(name).stack_size(STACK).spawn(move || {
            let outcome = hook(kind);
            let begins = outcome.is_ok();
            // The receiver waits in the function that started this thread.
            let _ = sender.send(outcome);
            if begins {
                body();
            }
        })?;
        match receiver.recv() {
            Ok(outcome) => outcome.map(|()| thread),
            Err(_) => Err(io::Error::other("the thread ended before it began")),
        }
    }
}

/// Device code does not recurse, and what lies on its stacks is small.
const STACK: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hook_runs_on_the_new_thread_before_its_body() {
        let order = Arc::new(std::sync::Mutex::new(Vec::new()));
        let by_hook = Arc::clone(&order);
        let threads = Threads::new(move |kind| {
            by_hook.lock().unwrap().push((std::thread::current().name().map(str::to_owned), kind.name()));
            Ok(())
        });
        let by_body = Arc::clone(&order);
        let thread = threads
            .spawn(ThreadKind::Net, "net-1".to_owned(), move || by_body.lock().unwrap().push((None, "body")))
            .unwrap();
        thread.join().unwrap();
        assert_eq!(*order.lock().unwrap(), [(Some("net-1".to_owned()), "net"), (None, "body")]);
    }

    #[test]
    fn a_thread_whose_hook_fails_does_not_begin() {
        let threads = Threads::new(|_| Err(io::Error::from_raw_os_error(1)));
        let error = threads.spawn(ThreadKind::Block, "block".to_owned(), || panic!("must not run")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(1));
    }
}
