//! The ranks of one node: environment, failures, restarts, signals.

use asyncthink_launch::{Exit, Outcome, Program, StopSignal};

use crate::support::{Folder, NEVER, Setup, has_ended, rank_failure, wait_until};

/// Rank 1 fails once rank 0 is ready; rank 0 does what the test puts in `{}`.
const FAIL_BESIDE: &str = "
    if [ $RANK = 1 ]; then
        until [ -e $1/ready ]; do sleep 0.01; done
        exit 3
    fi
    {}
    : > $1/ready
    while :; do sleep 0.01; done";

#[test]
fn every_rank_has_the_environment_of_torchrun() {
    let folder = Folder::new();
    let script = "if read line; then exit 9; fi; env > $1/$RANK";
    let launched = Setup::new(3, script, &folder).max_restarts(2).run();
    assert_eq!(launched.outcome(), Outcome::Done);
    let inherited = |name: &str, other: &str| std::env::var(name).unwrap_or(other.to_owned());
    for rank in 0..3 {
        let text = folder.read(&rank.to_string());
        let variable = |name: &str| {
            let mut lines = text.lines();
            let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            value.unwrap_or_else(|| panic!("no {name}")).to_owned()
        };
        for (name, value) in [
            ("RANK", rank.to_string()),
            ("LOCAL_RANK", rank.to_string()),
            ("ROLE_RANK", rank.to_string()),
            ("WORLD_SIZE", "3".to_owned()),
            ("LOCAL_WORLD_SIZE", "3".to_owned()),
            ("ROLE_WORLD_SIZE", "3".to_owned()),
            ("GROUP_RANK", "0".to_owned()),
            ("GROUP_WORLD_SIZE", "1".to_owned()),
            ("ROLE_NAME", "default".to_owned()),
            ("MASTER_ADDR", "127.0.0.1".to_owned()),
            ("TORCHELASTIC_RESTART_COUNT", "0".to_owned()),
            ("TORCHELASTIC_MAX_RESTARTS", "2".to_owned()),
            ("TORCHELASTIC_RUN_ID", "test".to_owned()),
            ("TORCHELASTIC_USE_AGENT_STORE", "False".to_owned()),
            ("OMP_NUM_THREADS", inherited("OMP_NUM_THREADS", "1")),
            ("ASYNCTHINK_LAUNCHER_PID", std::process::id().to_string()),
        ] {
            assert_eq!(variable(name), value, "{name} of rank {rank}");
        }
        let port: u16 = variable("MASTER_PORT").parse().expect("a port");
        assert!(port > 0);
        let error_file = variable("TORCHELASTIC_ERROR_FILE");
        assert!(error_file.ends_with(&format!("attempt_0/{rank}/error.json")));
    }
}

#[test]
fn one_failure_ends_all() {
    let folder = Folder::new();
    let script = FAIL_BESIDE.replace("{}", "trap 'echo terminated; exit 0' TERM");
    let launched = Setup::new(2, &script, &folder).run();
    assert_eq!(launched.out.text(), "[rank 0] terminated\n");
    let Outcome::Failed(report) = launched.outcome() else {
        panic!("no failure");
    };
    assert_eq!(report.others, []);
    assert!(!report.is_input());
    let root = rank_failure(report.root);
    assert_eq!((root.rank.get(), root.exit), (1, Exit::Code(3)));
    assert_eq!((root.host.as_str(), root.message), ("here", None));
}

#[test]
fn a_rank_that_does_not_end_is_killed() {
    let folder = Folder::new();
    let script = FAIL_BESIDE.replace("{}", "trap '' TERM; echo $$ > $1/pid");
    let launched = Setup::new(2, &script, &folder).grace(200).run();
    let note = "[launch] rank 0 has not ended within 0.2 s and is killed\n";
    assert!(launched.err.contains(note), "{}", launched.err);
    assert_eq!(launched.root().rank.get(), 1);
    assert!(has_ended(&folder.read("pid")));
}

#[test]
fn a_stopped_rank_hears_of_the_end() {
    let folder = Folder::new();
    let script = "
        if [ $RANK = 1 ]; then
            until [ -e $1/ready ] && grep -q ') T' /proc/$(cat $1/ready)/stat; do sleep 0.01; done
            exit 3
        fi
        trap 'echo terminated; exit 0' TERM
        echo $$ > $1/pid
        mv $1/pid $1/ready
        kill -STOP $$
        while :; do sleep 0.01; done";
    let launched = Setup::new(2, script, &folder).grace(60_000).run();
    assert_eq!(launched.out.text(), "[rank 0] terminated\n");
    assert!(!launched.err.contains("is killed"), "{}", launched.err);
}

#[test]
fn what_ranks_leave_behind_is_killed() {
    let folder = Folder::new();
    let script = "sleep 3600 & echo $! > $1/pid";
    let launched = Setup::new(1, script, &folder).run();
    assert_eq!(launched.outcome(), Outcome::Done);
    let pid = folder.read("pid");
    wait_until(|| has_ended(&pid));
}

#[test]
fn restarts_are_counted_and_bounded() {
    let script = "
        [ $RANK = 0 ] || exit 0
        echo $TORCHELASTIC_RESTART_COUNT of $TORCHELASTIC_MAX_RESTARTS >> $1/attempts
        [ $TORCHELASTIC_RESTART_COUNT = 2 ]";
    let folder = Folder::new();
    let launched = Setup::new(2, script, &folder).max_restarts(3).run();
    assert!(
        launched.err.contains("[launch]   restart 2 of 3\n"),
        "{}",
        launched.err
    );
    assert_eq!(launched.outcome(), Outcome::Done);
    assert_eq!(folder.read("attempts"), "0 of 3\n1 of 3\n2 of 3\n");

    let folder = Folder::new();
    let launched = Setup::new(2, script, &folder).max_restarts(1).run();
    assert_eq!(launched.root().exit, Exit::Code(1));
    assert_eq!(folder.read("attempts"), "0 of 1\n1 of 1\n");
}

#[test]
fn wrong_input_is_not_tried_again() {
    let folder = Folder::new();
    let script = "echo x >> $1/attempts; exit 2";
    let launched = Setup::new(1, script, &folder).max_restarts(3).run();
    let Outcome::Failed(report) = launched.outcome() else {
        panic!("no failure");
    };
    assert!(report.is_input());
    assert_eq!(folder.read("attempts"), "x\n");
}

#[test]
fn wrong_input_of_a_rank_that_is_stopped_as_it_ends_is_not_tried_again() {
    let folder = Folder::new();
    let words =
        r#"{"message": {"message": "x", "extraInfo": {"timestamp_millis": 17, "exit_code": 2}}}"#;
    let said = format!("echo x >> $1/attempts; printf '{words}' > $TORCHELASTIC_ERROR_FILE");
    let script = FAIL_BESIDE.replace("{}", &said).replace("exit 3", "exit 2");
    let launched = Setup::new(2, &script, &folder).max_restarts(3).run();
    let Outcome::Failed(report) = launched.outcome() else {
        panic!("no failure");
    };
    assert!(report.is_input());
    assert_eq!(folder.read("attempts"), "x\n");
}

#[test]
fn the_error_file_says_why() {
    let folder = Folder::new();
    let script = r#"
        printf '{"message": {"message": "the loss is NaN", "extraInfo": {"timestamp": "17"}}}' > $TORCHELASTIC_ERROR_FILE
        kill -s KILL $$"#;
    let root = Setup::new(1, script, &folder).run().root();
    assert_eq!(root.exit, Exit::Signal(9));
    assert_eq!(root.message.as_deref(), Some("the loss is NaN"));
}

#[test]
fn the_first_to_say_so_is_the_root_even_if_it_ends_last() {
    let folder = Folder::new();
    let words =
        r#"printf '{"message": {"message": "first", "extraInfo": {"timestamp_millis": 17}}}'"#;
    let first = format!("trap 'exit 1' TERM; {words} > $TORCHELASTIC_ERROR_FILE");
    let script = FAIL_BESIDE.replace("{}", &first);
    let launched = Setup::new(2, &script, &folder).run();
    let Outcome::Failed(report) = launched.outcome() else {
        panic!("no failure");
    };
    assert_eq!(report.root.message(), Some("first"));
    assert_eq!(report.others.len(), 1);
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let program = Program {
        path: "/nonexistent/program".into(),
        args: Vec::new(),
    };
    let root = Setup::of(2, program).run().root();
    let Exit::NotStarted(reason) = root.exit else {
        panic!("started");
    };
    assert!(reason.contains("/nonexistent/program"), "{reason}");
}

#[test]
fn a_signal_reaches_all_ranks_and_ends_the_launch() {
    let folder = Folder::new();
    let script = "
        trap 'echo saved; exit 143' TERM
        : > $1/$RANK
        while :; do sleep 0.01; done";
    let running = Setup::new(2, script, &folder).max_restarts(3).start();
    folder.wait_for("0");
    folder.wait_for("1");
    running.signals.send(StopSignal::Hup);
    let launched = running.wait();
    let mut lines: Vec<String> = launched.out.text().lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["[rank 0] saved", "[rank 1] saved"]);
    assert_eq!(launched.outcome(), Outcome::Signalled(StopSignal::Hup));
}

/// A shell cannot trap what it was started to ignore, such as in `cargo test
/// &` of another shell.
fn is_interrupt_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("a file");
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = u64::from_str_radix(mask.expect("a mask").trim(), 16);
    mask.expect("a mask") & 2 != 0
}

#[test]
fn an_interrupt_stays_one_and_a_second_kills() {
    if is_interrupt_ignored() {
        return;
    }
    let folder = Folder::new();
    let script = "
        trap 'echo interrupted; : > $1/interrupted' INT
        trap '' TERM
        : > $1/ready
        while :; do sleep 0.01; done";
    let mut setup = Setup::new(1, script, &folder);
    setup.timing.grace = NEVER;
    let running = setup.start();
    folder.wait_for("ready");
    running.signals.send(StopSignal::Int);
    folder.wait_for("interrupted");
    running.signals.send(StopSignal::Int);
    let launched = running.wait();
    assert_eq!(launched.out.text(), "[rank 0] interrupted\n");
    assert_eq!(launched.outcome(), Outcome::Signalled(StopSignal::Int));
}
