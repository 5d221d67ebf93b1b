//! One virtual machine for many containers, and many named cases in one test: a boot under emulation costs seconds.

use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Bundle, BundleBuilder, Output, Stockade, unique_id};

/// Begins a line with the number of the case whose output follows.
const MARK: &str = "@@";

/// A pod: a sandbox whose first container sleeps, and to which a test adds containers through the command line.
#[derive(Debug)]
pub struct Pod {
    stockade: Stockade,
    id: String,
    /// `exec` reads it.
    _bundle: Bundle,
}

impl Pod {
    /// Boots the pod's machine.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn boot() -> Self {
        Self::boot_with(Bundle::builder(), "")
    }

    /// Boots it with changes to the sandbox's own container, and lines for the backend's configuration.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn boot_with(sandbox: BundleBuilder, machine: &str) -> Self {
        let stockade = Stockade::with_config(machine, "");
        let id = unique_id("pod");
        let bundle = sandbox
            .args(["sleep", "100000"])
            .annotation("io.kubernetes.cri.container-type", "sandbox")
            .build()
            .expect("a bundle can be written");
        let _ = stockade.launch(&id, &bundle);
        Self { stockade, id, _bundle: bundle }
    }

    /// The command line whose state root the pod is in.
    #[must_use]
    pub fn stockade(&self) -> &Stockade {
        &self.stockade
    }

    /// The sandbox's id, which is also its first container's.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Makes a bundle's container one of the pod.
    ///
    /// # Errors
    /// When the bundle cannot be written.
    pub fn bundle(&self, builder: BundleBuilder) -> Result<Bundle> {
        builder
            .annotation("io.kubernetes.cri.container-type", "container")
            .annotation("io.kubernetes.cri.sandbox-id", &self.id)
            .build()
    }

    /// Runs a container to its end.
    ///
    /// # Errors
    /// When the bundle cannot be written.
    pub fn run(&self, builder: BundleBuilder) -> Result<Output> {
        let bundle = self.bundle(builder)?;
        Ok(self.stockade.run(&unique_id("c"), &bundle, &[]))
    }

    /// Runs a line of shell in a container, which must succeed; gives what it printed, without the last line break.
    ///
    /// # Errors
    /// When it fails.
    pub fn shell(&self, builder: BundleBuilder, script: &str) -> Result<String> {
        let output = self.run(builder.shell(script))?;
        ensure!(output.status.success(), "status {}: {}{}", output.code(), output.text(), output.error());
        Ok(output.text().trim_end_matches('\n').to_owned())
    }

    /// Runs one container whose creation or start must fail; gives the error.
    ///
    /// # Errors
    /// When it succeeds.
    pub fn refused(&self, builder: BundleBuilder) -> Result<String> {
        let output = self.run(builder)?;
        ensure!(!output.status.success(), "it was accepted, and printed {:?}", output.text());
        ensure!(!output.error().trim().is_empty(), "status {}, and no word why", output.code());
        Ok(output.error().trim().to_owned())
    }

    /// Runs one container with all lines of the table, each a case: name, shell command, what it must print (both
    /// streams, without space around). A line whose text begins with `~` must only contain the rest.
    pub fn table(&self, cases: &mut Cases, topic: &str, builder: BundleBuilder, table: &[(&str, &str, &str)]) {
        let mut script = String::new();
        for (index, (_, command, _)) in table.iter().enumerate() {
            script.push_str(&format!("printf '\\n{MARK}{index}\\n'\n{{ {command}\n}} 2>&1\n"));
        }
        let run = catch_unwind(AssertUnwindSafe(|| self.run(builder.shell(&script))));
        let output = match run {
            Ok(Ok(output)) => output,
            Ok(Err(error)) => return cases.fail(topic, &format!("{error:#}")),
            Err(_) => return cases.fail(topic, "it did not end"),
        };
        compare(cases, topic, table, &output);
    }
}

/// Splits what a table's script printed and looks at each case.
fn compare(cases: &mut Cases, topic: &str, table: &[(&str, &str, &str)], output: &Output) {
    let text = output.text();
    for (index, (name, command, wanted)) in table.iter().enumerate() {
        let begin = format!("\n{MARK}{index}\n");
        let found = text.find(&begin).map(|at| &text[at + begin.len()..]);
        cases.case(&format!("{topic}: {name}"), || {
            let Some(found) = found else {
                bail!("no output; status {}: {}", output.code(), output.error().trim());
            };
            let found = found.split(&format!("\n{MARK}")).next().unwrap_or_default().trim();
            match wanted.strip_prefix('~') {
                Some(part) => ensure!(found.contains(part), "`{command}` printed {found:?}, which lacks {part:?}"),
                None => ensure!(found == wanted.trim(), "`{command}` printed {found:?}, not {wanted:?}"),
            }
            Ok(())
        });
    }
}

/// Named cases of one test: each runs, and the end names all that failed.
#[derive(Debug, Default)]
pub struct Cases {
    count: usize,
    failures: Vec<String>,
}

impl Cases {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs a case; an error or a panic fails it.
    pub fn case(&mut self, name: &str, case: impl FnOnce() -> Result<()>) {
        self.count += 1;
        match catch_unwind(AssertUnwindSafe(case)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.failures.push(format!("{name}: {error:#}")),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                self.failures.push(format!("{name}: {}", text.unwrap_or_default()));
            }
        }
    }

    /// A case whose error must contain each of `parts`.
    pub fn refused(&mut self, name: &str, pod: &Pod, builder: BundleBuilder, parts: &[&str]) {
        self.case(name, || {
            let error = pod.refused(builder).context("a container that must be refused")?;
            for part in parts {
                ensure!(error.contains(part), "the error lacks {part:?}: {error}");
            }
            Ok(())
        });
    }

    /// A case that failed before it could run.
    pub fn fail(&mut self, name: &str, why: &str) {
        self.count += 1;
        self.failures.push(format!("{name}: {why}"));
    }

    /// Ends the test.
    ///
    /// # Panics
    /// When a case failed: with the names of all that did.
    pub fn finish(self) {
        println!("{} cases, {} failed", self.count, self.failures.len());
        let failures = self.failures.join("\n  ");
        assert!(failures.is_empty(), "{} of {} cases failed:\n  {failures}", self.failures.len(), self.count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failing_case_is_named() {
        let mut cases = Cases::new();
        cases.case("good", || Ok(()));
        cases.case("bad", || bail!("why"));
        cases.case("worse", || panic!("how"));
        assert_eq!(cases.failures, ["bad: why", "worse: how"]);
        assert_eq!(cases.count, 3);
    }
}
