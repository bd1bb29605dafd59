//! Runs of several ranks whose machine turns against them.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use asyncthink_tests::{Workspace, send, stdout, wait_for_lines};

/// The rank of this launcher, as a process id.
fn pid_of_rank(launcher: u32, rank: u32) -> u32 {
    let wanted = format!("RANK={rank}");
    let processes = fs::read_dir("/proc").expect("a folder");
    let mut pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.find(|pid: &u32| {
        let read = |name| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let (stat, environ) = (read("stat"), read("environ"));
        let parent = stat
            .rsplit(')')
            .next()
            .and_then(|rest| rest.split(' ').nth(2));
        parent == Some(&launcher.to_string()) && environ.split('\0').any(|word| word == wanted)
    })
    .expect("the rank runs")
}

#[test]
fn a_stopped_rank_ends_the_launch_and_is_named() {
    let workspace = Workspace::new();
    workspace.done(&["synth", "tiny.toml"]);
    // The first rank serves the store, so nobody answers when its signs of life are looked for.
    for stopped in [1, 0] {
        check_stopped(&workspace, stopped);
        fs::remove_dir_all(workspace.path().join("run/sft")).expect("a folder");
    }
}

fn check_stopped(workspace: &Workspace, stopped: usize) {
    let launcher = workspace.spawn(&[
        "launch",
        "--standalone",
        "--nproc-per-node=2",
        "--",
        "sft",
        "tiny.toml",
        "--set=sft.num_steps=100000",
        "--set=sft.save_every_steps=100000",
        "--set=distributed.timeout_secs=6",
    ]);
    wait_for_lines(&workspace.path().join("run/sft/metrics.jsonl"), 3);
    let pids = [0, 1].map(|rank| pid_of_rank(launcher.id(), rank));
    // Time for its signs of life, which come twice a second.
    std::thread::sleep(std::time::Duration::from_secs(1));
    send("-STOP", pids[stopped]);
    let output = launcher.wait_with_output().expect("the launcher ends");
    let text = workspace.show(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let (_, last) = text
        .rsplit_once(&format!("\nerror: rank {} on ", 1 - stopped))
        .expect("a root cause");
    let waiting = 1 - stopped;
    for said in [
        format!("timed out after 6s on rank {waiting} of 2 in `sft step "),
        format!("rank {stopped} gives no sign of life, last seen at collective "),
    ] {
        assert!(last.contains(&said), "{text}");
    }
    // With the phase that it was in.
    let (_, seen) = last
        .split_once("last seen at collective ")
        .expect("as above");
    let phase = seen.lines().next().unwrap_or_default();
    assert!(phase.contains(" in `sft step "), "{text}");
    for pid in pids {
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{text}");
    }
}

/// A rank of two that meet at a port.
fn rank_of_two(workspace: &Workspace, rank: u32, master: (&str, u16), args: &[&str]) -> Command {
    let mut command = workspace.command(args);
    command
        .envs([("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "1")])
        .env("RANK", rank.to_string())
        .env("LOCAL_RANK", "0")
        .env("MASTER_ADDR", master.0)
        .env("MASTER_PORT", master.1.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

#[test]
fn ranks_that_do_not_share_the_run_folder_are_refused() {
    let workspace = Workspace::new();
    workspace.done(&["synth", "tiny.toml"]);
    copy_folder(
        &workspace.path().join("run"),
        &workspace.path().join("apart"),
    );
    // Free again once it is known.
    let free =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let port = free.expect("a port").port();
    let ranks = ["run", "apart"].iter().zip(0..).map(|(run_dir, rank)| {
        let run_dir = format!("--set=run_dir={run_dir:?}");
        let timeout = "--set=distributed.timeout_secs=6";
        let args = ["sft", "tiny.toml", &run_dir, timeout];
        let mut command = rank_of_two(&workspace, rank, ("127.0.0.1", port), &args);
        command.spawn().expect("the program starts")
    });
    for rank in ranks.collect::<Vec<_>>() {
        let output = rank.wait_with_output().expect("it ends");
        let text = workspace.show(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        for said in [
            "error: the ranks do not share a run folder: what rank 0 on ",
            "/run`) writes is not seen by rank 1 on ",
            "/apart`)\n",
            "hint: every rank writes a part of each checkpoint",
        ] {
            assert!(text.contains(said), "{said}: {text}");
        }
    }
    for run_dir in ["run", "apart"] {
        assert!(!workspace.path().join(run_dir).join("sft").exists());
    }
}

#[test]
fn a_first_rank_that_is_not_there_or_is_stopped_is_named_within_the_timeout() {
    let workspace = Workspace::new();
    workspace.done(&["synth", "tiny.toml"]);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let timeout = "--set=distributed.timeout_secs=2";
    let ended = || {
        let args = ["sft", "tiny.toml", timeout];
        let mut command = rank_of_two(&workspace, 1, ("127.0.0.1", port), &args);
        let output = command.output().expect("the program starts");
        let text = workspace.show(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        let said = "error: rank 0 of 2 gives no sign of life: its store does not answer rank 1 in `sft: joining the ranks`: ";
        assert!(text.contains(said), "{text}");
        text
    };
    // As of a process that is stopped: the system takes connections for it.
    let text = ended();
    assert!(
        text.contains("it takes connections and does not answer"),
        "{text}"
    );
    drop(listener);
    ended();
}

#[test]
fn a_master_address_that_is_not_known_is_an_error_at_once() {
    let workspace = Workspace::new();
    workspace.done(&["synth", "tiny.toml"]);
    for rank in [0, 1] {
        let master = ("no-such-host.invalid", 29500);
        // The time that ranks wait for each other is half an hour.
        let mut command = rank_of_two(&workspace, rank, master, &["sft", "tiny.toml"]);
        let output = command.output().expect("the program starts");
        let text = workspace.show(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        let said = "error: `MASTER_ADDR`: host `no-such-host.invalid` cannot be resolved: ";
        assert!(
            text.contains(said) && text.contains("hint: check the name"),
            "{text}"
        );
    }
}

/// Steps at which the run of the tests below saves; their disk gives out at the second one.
const SETS: [&str; 4] = [
    "--set=sft.num_steps=30",
    "--set=sft.save_every_steps=10",
    "--set=sft.keep_checkpoints=3",
    "--set=model.init.hidden_size=64",
];

/// `sft` by two ranks in a run folder.
fn sft(recipe: &Path, run_dir: &Path) -> Vec<String> {
    let launch = ["launch", "--standalone", "--nproc-per-node=2", "--", "sft"];
    let mut args: Vec<String> = launch.map(str::to_owned).into();
    args.push(recipe.display().to_string());
    args.push(format!("--set=run_dir={:?}", run_dir.display().to_string()));
    args.extend(SETS.map(str::to_owned));
    args
}

/// A finished run, beside which an interrupted one is made.
struct Reference {
    workspace: Workspace,
}

impl Reference {
    fn new() -> Self {
        let workspace = Workspace::new();
        workspace.done(&["synth", "tiny.toml"]);
        let args = sft(Path::new("tiny.toml"), Path::new("run"));
        workspace.done(&args.iter().map(String::as_str).collect::<Vec<_>>());
        Self { workspace }
    }

    fn run_dir(&self) -> PathBuf {
        self.workspace.path().join("run")
    }

    fn recipe(&self) -> PathBuf {
        self.workspace.path().join("tiny.toml")
    }

    /// Makes the run as it was when step 10 was saved.
    fn copy_of_step_10(&self, to: &Path) {
        copy_folder(&self.run_dir(), to);
        let checkpoints = to.join("sft/checkpoints");
        for step in ["step_20", "step_30"] {
            fs::remove_dir_all(checkpoints.join(step)).expect("a checkpoint");
        }
        fs::remove_file(checkpoints.join("latest")).expect("a link");
        std::os::unix::fs::symlink("step_10", checkpoints.join("latest")).expect("a link");
    }

    /// Checks how a run ended that could not save step 20.
    fn check_failure(&self, run_dir: &Path, output: &Output, reason: &str, hint: &str) {
        let text = self.workspace.show(output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        let (_, last) = text.rsplit_once("\nerror: rank ").expect("a root cause");
        for said in ["/.partial-step_20/", reason, hint] {
            assert!(text.contains(said), "{said}: {text}");
        }
        // Whichever rank is blamed, it says why.
        assert!(last.contains(reason) && last.contains("hint: "), "{text}");
        let checkpoint = Path::new("sft/checkpoints/step_10");
        assert_eq!(
            files(&run_dir.join(checkpoint)),
            files(&self.run_dir().join(checkpoint))
        );
        let latest = run_dir.join("sft/checkpoints/latest");
        assert_eq!(fs::read_link(latest).expect("a link"), Path::new("step_10"));
        assert!(!run_dir.join("sft/checkpoints/step_20").exists());
    }

    /// Checks that a run is now as if it had never failed.
    fn check_finished(&self, run_dir: &Path, output: &Output) {
        let text = self.workspace.show(output);
        assert!(output.status.success(), "{text}");
        assert!(stdout(output).contains("sft done, 30 steps"), "{text}");
        assert!(text.contains("going on from"), "{text}");
        assert_eq!(metrics(run_dir), metrics(&self.run_dir()));
        let weights = "sft/checkpoints/latest/model.safetensors";
        assert_eq!(
            fs::read(run_dir.join(weights)).expect("weights"),
            fs::read(self.run_dir().join(weights)).expect("weights")
        );
    }
}

/// Relative names and contents of all files, in the order of the names.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = PathBuf::from(path.file_name().expect("a name"));
        if path.is_dir() {
            found.extend(
                files(&path)
                    .into_iter()
                    .map(|(below, bytes)| (name.join(below), bytes)),
            );
        } else {
            found.push((name, fs::read(&path).expect("a file")));
        }
    }
    found.sort();
    found
}

fn copy_folder(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-r").arg(from).arg(to).status();
    assert!(status.expect("`cp` runs").success());
}

/// The lines of the metrics without what a clock measured, which comes last.
fn metrics(run_dir: &Path) -> Vec<String> {
    let text = fs::read_to_string(run_dir.join("sft/metrics.jsonl")).expect("metrics");
    let without = |line: &str| {
        line.rsplit_once(",\"timing\":")
            .expect("timing")
            .0
            .to_owned()
    };
    text.lines().map(without).collect()
}

/// A disk of a few megabytes, in a mount namespace of its own. Needs no root where users may have namespaces.
struct SmallDisk {
    /// Keeps the namespace.
    keeper: Child,
    dir: PathBuf,
}

impl SmallDisk {
    /// Fails with the system's reason.
    fn mount(dir: &Path) -> Result<Self, String> {
        let script = "mount -t tmpfs -o size=8m none \"$1\" && echo mounted && exec cat";
        let keeper = Command::new("unshare")
            .args([
                "--user",
                "--map-root-user",
                "--mount",
                "sh",
                "-c",
                script,
                "sh",
            ])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut disk = Self {
            keeper: keeper.map_err(|error| format!("`unshare`: {error}"))?,
            dir: dir.to_owned(),
        };
        let mut line = String::new();
        let stdout = disk.keeper.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        if line == "mounted\n" {
            return Ok(disk);
        }
        let mut reason = String::new();
        let mut stderr = disk.keeper.stderr.take().expect("a pipe");
        stderr.read_to_string(&mut reason).expect("text");
        Err(reason)
    }

    /// A path on the disk, as seen from outside.
    fn outside(&self, name: &str) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.keeper.id()));
        root.join(self.dir.strip_prefix("/").expect("absolute"))
            .join(name)
    }

    /// Runs this program where the disk is.
    fn run(&self, args: &[String]) -> Output {
        Command::new("nsenter")
            .args(["--user", "--mount", "--preserve-credentials", "--target"])
            .arg(self.keeper.id().to_string())
            .arg(asyncthink_tests::program())
            .args(args)
            .output()
            .expect("`nsenter` runs")
    }

    /// Fills the disk up to half of the bytes of `dir`.
    fn fill(&self, dir: &Path) {
        let path = self.outside("filler");
        let mut filler = fs::File::create(&path).expect("a file");
        std::io::copy(&mut std::io::repeat(0), &mut filler).expect_err("the disk ends");
        let all = filler.metadata().expect("a file").len();
        let room: usize = files(dir).iter().map(|(_, bytes)| bytes.len()).sum();
        filler.set_len(all - room as u64 / 2).expect("room");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

#[test]
fn a_full_disk_ends_a_run_that_goes_on_once_there_is_room() {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = match SmallDisk::mount(folder.path()) {
        Ok(disk) => disk,
        Err(reason) => {
            eprintln!("skipped: no disk may be mounted here: {reason}");
            return;
        }
    };
    let reference = Reference::new();
    let run_dir = disk.outside("run");
    reference.copy_of_step_10(&run_dir);
    disk.fill(&run_dir.join("sft/checkpoints/step_10"));
    let args = sft(&reference.recipe(), &folder.path().join("run"));
    reference.check_failure(
        &run_dir,
        &disk.run(&args),
        "No space left on device (os error 28)",
        "hint: make room there and give the same command again",
    );
    fs::remove_file(disk.outside("filler")).expect("the filler");
    reference.check_finished(&run_dir, &disk.run(&args));
}

#[test]
fn a_bound_on_files_ends_a_run_that_goes_on_without_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let reference = Reference::new();
    let run_dir = folder.path().join("run");
    reference.copy_of_step_10(&run_dir);
    let weights = run_dir.join("sft/checkpoints/latest/model.safetensors");
    // In blocks of 512 bytes; metrics are smaller.
    let num_blocks = fs::metadata(weights).expect("weights").len() / 2 / 512;
    let script = "trap '' XFSZ; ulimit -f \"$1\"; shift; exec \"$@\"";
    let args = sft(&reference.recipe(), &run_dir);
    let output = Command::new("sh")
        .args(["-c", script, "sh", &num_blocks.to_string()])
        .arg(asyncthink_tests::program())
        .args(&args)
        .output()
        .expect("the shell runs");
    reference.check_failure(
        &run_dir,
        &output,
        "File too large (os error 27)",
        "hint: `ulimit -f` or the file system bounds files",
    );
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let output = reference.workspace.run(&args);
    reference.check_finished(&run_dir, &output);
}
