//! The threads that wait for the disk.

use crate::virtio::{ThreadKind, Threads};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// How many requests of a disk are under way at once. More gain little on a file system, and each costs a stack.
pub(super) const THREADS: usize = 4;

/// What a thread does next.
type Job = Box<dyn FnOnce() + Send>;

/// A few threads, and the jobs that wait for one. Whoever gives jobs bounds their number.
pub(super) struct Pool {
    threads: Threads,
    jobs: Arc<Jobs>,
    running: Mutex<Vec<JoinHandle<()>>>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Pool").finish_non_exhaustive()
    }
}

struct Jobs {
    waiting: Mutex<Waiting>,
    more: Condvar,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl Jobs {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics while it is held.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job; `None` when there will be none.
    fn next(&self) -> Option<Job> {
        let mut waiting = self.waiting();
        loop {
            if let Some(job) = waiting.jobs.pop_front() {
                return Some(job);
            }
            if waiting.closed {
                return None;
            }
            waiting = self.more.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Pool {
    /// A pool without threads, which `threads` starts later.
    pub(super) fn new(threads: Threads) -> Self {
        let jobs = Jobs { waiting: Mutex::default(), more: Condvar::new() };
        Self { threads, jobs: Arc::new(jobs), running: Mutex::default() }
    }

    /// Starts the threads, unless they run.
    ///
    /// # Errors
    /// The kernel has no thread to give; those that were started go on.
    pub(super) fn start(&self) -> io::Result<()> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        while running.len() < THREADS {
            let jobs = Arc::clone(&self.jobs);
            let name = format!("{}-io", ThreadKind::Block.name());
            running.push(self.threads.spawn(ThreadKind::Block, name, move || {
                while let Some(job) = jobs.next() {
                    job();
                }
            })?);
        }
        Ok(())
    }

    /// Has a thread do `job` when one is free.
    pub(super) fn give(&self, job: Job) {
        self.jobs.waiting().jobs.push_back(job);
        self.jobs.more.notify_one();
    }
}

impl Drop for Pool {
    /// Does what was given, and ends the threads.
    fn drop(&mut self) {
        self.jobs.waiting().closed = true;
        self.jobs.more.notify_all();
        for thread in self.running.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // That a job panicked has been said by the panic itself.
            let _ = thread.join();
        }
    }
}
