//! Where the output of ranks goes.

use std::collections::BTreeMap;

use asyncthink_launch::{Outcome, StreamSpec};

use crate::support::{Folder, Setup};

fn spec(text: &str) -> StreamSpec {
    text.parse().expect("a spec")
}

#[test]
fn lines_of_ranks_are_whole_and_in_order() {
    let folder = Folder::new();
    let script = "
        num=0
        while [ $num -lt 200 ]; do
            printf 'rank %s ' $RANK
            printf 'line %s\\n' $num
            num=$((num + 1))
        done
        printf 'no end'";
    let launched = Setup::new(4, script, &folder).run();
    let text = launched.out.text();
    assert_eq!(launched.outcome(), Outcome::Done);
    let mut next: BTreeMap<&str, usize> = BTreeMap::new();
    for line in text.lines() {
        let (rank, rest) = line.split_once("] ").expect("a prefix");
        let rank = rank.strip_prefix("[rank ").expect("a prefix");
        let num = next.entry(rank).or_default();
        let expected = match *num {
            200 => "no end".to_owned(),
            num => format!("rank {rank} line {num}"),
        };
        assert_eq!(rest, expected);
        *num += 1;
    }
    assert_eq!(next.into_values().collect::<Vec<_>>(), [201; 4]);
}

#[test]
fn streams_are_kept_apart_and_bytes_pass() {
    let folder = Folder::new();
    let script = r"printf 'a\377b\n'; echo wrong >&2";
    let launched = Setup::new(1, script, &folder).run();
    assert_eq!(launched.out.bytes(), b"[rank 0] a\xffb\n");
    assert!(launched.err.contains("[rank 0] wrong\n"));
}

#[test]
fn a_filter_limits_the_console_only() {
    let folder = Folder::new();
    let mut setup = Setup::new(3, "echo $RANK", &folder);
    setup.options.local_ranks_filter = Some("1".parse().expect("a list"));
    setup.options.log_dir = Some(folder.path("logs"));
    let launched = setup.run();
    assert_eq!(launched.out.text(), "[rank 1] 1\n");
    for rank in 0..3 {
        let log = folder.read(&format!("logs/test/attempt_0/{rank}/stdout.log"));
        assert_eq!(log, format!("{rank}\n"));
    }
}

#[test]
fn redirected_streams_leave_the_console_and_teed_ones_do_not() {
    let folder = Folder::new();
    let script = r"printf 'out\rput\n'; echo error >&2";
    let mut setup = Setup::new(2, script, &folder);
    setup.options.log_dir = Some(folder.path("logs"));
    setup.options.redirects = Some(spec("0:1"));
    setup.options.tee = Some(spec("1:1"));
    let launched = setup.run();
    let mut lines: Vec<String> = launched.out.text().lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["[rank 1] out", "[rank 1] put"]);
    for rank in 0..2 {
        let rank_folder = format!("logs/test/attempt_0/{rank}");
        // A file has the bytes as they were written.
        assert_eq!(
            folder.read(&format!("{rank_folder}/stdout.log")),
            "out\rput\n"
        );
        assert!(!folder.path(&format!("{rank_folder}/stderr.log")).exists());
        assert!(launched.err.contains(&format!("[rank {rank}] error\n")));
    }
}

#[test]
fn every_attempt_and_every_launch_has_a_folder() {
    let folder = Folder::new();
    let script = "echo $TORCHELASTIC_RESTART_COUNT; [ $TORCHELASTIC_RESTART_COUNT = 1 ]";
    for run in ["test", "test-2"] {
        let mut setup = Setup::new(1, script, &folder).max_restarts(1);
        setup.options.log_dir = Some(folder.path("logs"));
        let launched = setup.run();
        let root = folder.path("logs").join(run);
        let note = format!("[launch] logs are in `{}`\n", root.display());
        assert!(launched.err.contains(&note), "{}", launched.err);
        for attempt in 0..2 {
            let log = folder.read(&format!("logs/{run}/attempt_{attempt}/0/stdout.log"));
            assert_eq!(log, format!("{attempt}\n"));
        }
    }
}

#[test]
fn a_failure_names_the_log() {
    let folder = Folder::new();
    let mut setup = Setup::new(1, "exit 1", &folder);
    setup.options.log_dir = Some(folder.path("logs"));
    let root = setup.run().root();
    let log = folder.path("logs/test/attempt_0/0");
    assert_eq!(root.log, Some(log.display().to_string()));
}
