//! Hands tests to places, one at a time each, and begins one again whose lab host was lost.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::assets::Assets;
use crate::listing::Test;
use crate::machine::{LabHost, Options};
use crate::process;
use crate::wire::{End, Job};

/// How much of a test's output is kept, in bytes: its end.
const OUTPUT: usize = 512 << 10;
/// On a host whose processor is not emulated a test has this part of its suite's limit.
const HERE: u64 = 3;

/// Where tests run.
pub trait Place: Sync {
    /// How many tests run at a time.
    fn width(&self) -> usize;

    /// A host for the worker of this number, below the width.
    ///
    /// # Errors
    /// When it does not come up.
    fn host(&self, number: usize) -> Result<Box<dyn Host>, Lost>;
}

/// What runs one job at a time.
pub trait Host {
    /// Runs a job; `output` gets what it writes.
    ///
    /// # Errors
    /// When the host dies or hangs meanwhile. It takes no further jobs then.
    fn run(&mut self, job: &Job, output: &mut dyn FnMut(&str)) -> Result<End, Lost>;
}

/// A host is no more: the job that it had says nothing about the program that it ran.
#[derive(Clone, Debug)]
pub struct Lost(pub String);

/// This host, with two tests at a time.
#[derive(Clone, Copy, Debug)]
pub struct Here;

impl Place for Here {
    fn width(&self) -> usize {
        2
    }

    fn host(&self, _number: usize) -> Result<Box<dyn Host>, Lost> {
        Ok(Box::new(Self))
    }
}

impl Host for Here {
    fn run(&mut self, job: &Job, output: &mut dyn FnMut(&str)) -> Result<End, Lost> {
        let job = Job { limit: job.limit / HERE, ..job.clone() };
        Ok(process::run(&job, |bytes| output(&String::from_utf8_lossy(bytes))))
    }
}

/// Lab hosts, one for each of the options.
#[derive(Clone, Debug)]
pub struct Labs {
    /// What they boot from.
    pub assets: Assets,
    /// How each is made.
    pub options: Vec<Options>,
}

impl Place for Labs {
    fn width(&self) -> usize {
        self.options.len()
    }

    fn host(&self, number: usize) -> Result<Box<dyn Host>, Lost> {
        let options = self.options.get(number).ok_or_else(|| Lost(format!("there is no lab host {number}")))?;
        match LabHost::boot(&self.assets, options) {
            Ok(host) => Ok(Box::new(host)),
            Err(error) => Err(Lost(format!("{error:#}"))),
        }
    }
}

/// What came of a test.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Which.
    pub test: Test,
    /// `None`: it passed. Else why it counts as failed.
    pub failure: Option<String>,
    /// How long its last run took.
    pub took: Duration,
    /// Lab hosts that were lost while they ran it, and how.
    pub lost: Vec<String>,
    /// What it wrote; the end of it when it is long.
    pub output: String,
}

/// Runs `tests` with `environment` added to theirs, all within `limit`, and tells each outcome as it comes.
pub fn run(
    place: &dyn Place,
    tests: Vec<Test>,
    environment: &BTreeMap<String, String>,
    limit: Duration,
    mut tell: impl FnMut(Outcome),
) {
    let queue = Mutex::new(VecDeque::from(tests));
    let (sender, outcomes) = channel();
    let end = Instant::now() + limit;
    std::thread::scope(|scope| {
        for index in 0..place.width() {
            let (sender, queue) = (sender.clone(), &queue);
            scope.spawn(move || work(place, index, queue, environment, end, &sender));
        }
        drop(sender);
        for outcome in outcomes {
            tell(outcome);
        }
    });
}

fn work(
    place: &dyn Place,
    index: usize,
    queue: &Mutex<VecDeque<Test>>,
    environment: &BTreeMap<String, String>,
    end: Instant,
    sender: &Sender<Outcome>,
) {
    let mut worker = Worker { place, index, host: None };
    for id in 0.. {
        let Some(test) = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front() else { return };
        let outcome = if Instant::now() < end {
            worker.test(id, test, environment)
        } else {
            let failure = Some("the time for all of these tests was over before it was begun".to_owned());
            Outcome { test, failure, took: Duration::ZERO, lost: Vec::new(), output: String::new() }
        };
        if sender.send(outcome).is_err() {
            return;
        }
    }
}

struct Worker<'a> {
    place: &'a dyn Place,
    index: usize,
    host: Option<Box<dyn Host>>,
}

impl Worker<'_> {
    /// Runs a test; once more when its host is lost.
    fn test(&mut self, id: u64, test: Test, environment: &BTreeMap<String, String>) -> Outcome {
        let mut lost = Vec::new();
        loop {
            let mut output = String::new();
            let begin = Instant::now();
            let failure = match self.attempt(&job(id, &test, environment), &mut output) {
                Ok(end) => failure(&end, &output),
                Err(Lost(how)) => {
                    self.host = None;
                    lost.push(how.clone());
                    if lost.len() == 1 {
                        continue;
                    }
                    Some(format!("two lab hosts were lost while they ran it, the last: {how}"))
                }
            };
            return Outcome { test, failure, took: begin.elapsed(), lost, output };
        }
    }

    fn attempt(&mut self, job: &Job, output: &mut String) -> Result<End, Lost> {
        let mut keep = |text: &str| {
            output.push_str(text);
            if output.len() > 2 * OUTPUT {
                let from = output.len() - OUTPUT;
                let cut = (from..).find(|at| output.is_char_boundary(*at)).unwrap_or(from);
                output.drain(..cut);
            }
        };
        let mut host = match self.host.take() {
            Some(host) => host,
            None => self.place.host(self.index)?,
        };
        let end = host.run(job, &mut keep)?;
        self.host = Some(host);
        Ok(end)
    }
}

fn job(id: u64, test: &Test, environment: &BTreeMap<String, String>) -> Job {
    let mut environment = environment.clone();
    if let Some(backend) = test.suite.backend {
        environment.insert("STOCKADE_TEST_BACKEND".to_owned(), backend.to_owned());
    }
    let program = test.program.executable.display().to_string();
    Job {
        id,
        command: vec![program, "--exact".to_owned(), test.name.clone(), "--nocapture".to_owned()],
        environment,
        directory: test.program.directory.clone(),
        limit: u64::try_from(test.suite.limit.as_millis()).unwrap_or(u64::MAX),
    }
}

/// What a test program prints last when the one test that was asked for passed: without it, none of that name was run.
const PASSED: &str = "test result: ok. 1 passed;";

fn failure(end: &End, output: &str) -> Option<String> {
    match end {
        End::Exited(0) if output.contains(PASSED) => None,
        End::Exited(0) => Some("the program ended without having run it".to_owned()),
        End::Exited(status) => Some(format!("exit status {status}")),
        End::Signalled(signal) => Some(format!("ended by signal {signal}")),
        End::TimedOut => Some("it did not end within its time limit, and was killed".to_owned()),
        End::NotStarted(why) => Some(why.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listing::TestProgram;
    use crate::suites::SUITES;

    fn test(name: &str) -> Test {
        let program = TestProgram {
            package: "stockade-lab".into(),
            target: String::new(),
            executable: std::env::current_exe().unwrap(),
            directory: "/".into(),
        };
        Test { suite: &SUITES[0], program, name: name.into() }
    }

    #[test]
    fn each_test_is_run_and_told_with_its_output() {
        let tests = vec![test("wire::tests::a_message_is_one_line_whatever_is_in_it")];
        let mut outcomes = Vec::new();
        run(&Here, tests, &BTreeMap::new(), Duration::from_secs(60), |outcome| outcomes.push(outcome));
        assert!(outcomes.len() == 1 && outcomes[0].failure.is_none(), "{outcomes:?}");
        assert!(outcomes[0].output.contains("1 passed"), "{outcomes:?}");
    }

    #[test]
    fn a_test_that_is_not_in_its_program_has_failed() {
        let mut outcomes = Vec::new();
        let tests = vec![test("pool::tests::there_is_no_such_test")];
        run(&Here, tests, &BTreeMap::new(), Duration::from_secs(60), |outcome| outcomes.push(outcome));
        assert!(outcomes[0].failure.as_ref().is_some_and(|why| why.contains("without")), "{outcomes:?}");
    }

    /// Hosts of which each `every`th job is the last, whatever it is.
    struct Dying {
        every: u64,
        jobs: std::sync::atomic::AtomicU64,
    }

    struct DyingHost(bool);

    impl Place for Dying {
        fn width(&self) -> usize {
            1
        }

        fn host(&self, _number: usize) -> Result<Box<dyn Host>, Lost> {
            let count = self.jobs.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Ok(Box::new(DyingHost(count.is_multiple_of(self.every))))
        }
    }

    impl Host for DyingHost {
        fn run(&mut self, _job: &Job, output: &mut dyn FnMut(&str)) -> Result<End, Lost> {
            if self.0 {
                output("half of what it ");
                return Err(Lost("it died".to_owned()));
            }
            output("test result: ok. 1 passed; 0 failed");
            Ok(End::Exited(0))
        }
    }

    fn on_dying_hosts(every: u64) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        let place = Dying { every, jobs: 0.into() };
        let tests = vec![test("one"), test("two")];
        run(&place, tests, &BTreeMap::new(), Duration::from_secs(60), |outcome| outcomes.push(outcome));
        outcomes
    }

    #[test]
    fn a_test_whose_host_dies_begins_again_in_another_and_says_so() {
        let outcomes = on_dying_hosts(100);
        assert!(outcomes.iter().all(|outcome| outcome.failure.is_none()), "{outcomes:?}");
        assert_eq!(outcomes.iter().map(|outcome| outcome.lost.len()).collect::<Vec<_>>(), [1, 0]);
        assert!(!outcomes[0].output.contains("half"), "{outcomes:?}");
    }

    #[test]
    fn a_test_that_loses_two_hosts_has_failed() {
        let outcomes = on_dying_hosts(1);
        assert_eq!(outcomes.len(), 2);
        assert!(outcomes.iter().all(|outcome| outcome.lost.len() == 2), "{outcomes:?}");
        assert!(outcomes[1].failure.as_ref().is_some_and(|why| why.contains("two")), "{outcomes:?}");
    }

    #[test]
    fn when_the_time_is_over_the_rest_counts_as_failed() {
        let mut outcomes = Vec::new();
        let tests = vec![test("wire::tests::a_message_is_one_line_whatever_is_in_it")];
        run(&Here, tests, &BTreeMap::new(), Duration::ZERO, |outcome| outcomes.push(outcome));
        assert!(outcomes[0].failure.as_ref().is_some_and(|why| why.contains("time")), "{outcomes:?}");
    }
}
