//! Ending a process's descendants.

use super::sys::PidFd;
use std::collections::HashMap;
use std::fs;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long the descendants may take to be gone after SIGKILL.
const GONE_WITHIN: Duration = Duration::from_secs(5);
/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Kills all descendants of `root`, also those that are born meanwhile; `root` must be their subreaper and must live.
/// Whether all are gone.
pub(super) async fn kill_descendants(root: i32) -> bool {
    let deadline = Instant::now() + GONE_WITHIN;
    loop {
        let living = descendants(root, &processes());
        if living.is_empty() {
            return true;
        }
        for pid in living {
            // The number may be another process's by now: what is killed is opened first and looked at again.
            let Some(opened) = PidFd::open(pid) else { continue };
            if descendants(root, &processes()).contains(&pid) {
                opened.kill();
            }
        }
        if Instant::now() >= deadline {
            return false;
        }
        sleep(LOOK_EVERY).await;
    }
}

/// The living processes with their parents.
fn processes() -> HashMap<i32, i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| Some((pid, parent(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?))).collect()
}

/// The parent in a `stat` line; `None` for a zombie, which is dead.
fn parent(stat: &str) -> Option<i32> {
    // The name before it is in parentheses and may hold any character.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.next()?.parse().ok(),
    }
}

fn descendants(root: i32, parents: &HashMap<i32, i32>) -> Vec<i32> {
    let below = |pid: &&i32| {
        let mut at = **pid;
        // A list taken while processes come and go could hold a circle.
        for _ in 0..parents.len() {
            match parents.get(&at) {
                Some(parent) if *parent == root => return true,
                Some(parent) => at = *parent,
                None => return false,
            }
        }
        false
    };
    parents.keys().filter(below).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_gives_the_parent_whatever_the_name_is() {
        assert_eq!(parent("12 (a) S b) S 7 1 1"), Some(7));
        assert_eq!(parent("12 (a) Z 7 1 1"), None);
        assert_eq!(parent("12 (a"), None);
        assert_eq!(parent("12 (a) S"), None);
    }

    #[test]
    fn descendants_are_children_and_their_children_and_circles_end() {
        let parents = HashMap::from([(2, 1), (3, 2), (4, 3), (5, 1), (8, 9), (9, 8)]);
        let mut found = descendants(2, &parents);
        found.sort_unstable();
        assert_eq!(found, [3, 4]);
    }
}
