//! Launches in a folder of their own.

use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use asyncthink_launch::{
    Console, Endpoint, Error, Inbox, LaunchIo, LaunchOptions, Machine, NodeRank, NumNodes, Outcome,
    Program, RankFailure, SignalSender, Timing, launch,
};
use tempfile::TempDir;

/// Longer than any test may take: a wait that should not be seen as a hang.
pub(crate) const NEVER: Duration = Duration::from_hours(1);

/// Bytes that a test reads after they were written.
#[derive(Clone, Default)]
pub(crate) struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut buffer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        buffer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A folder that scripts know as `$1`.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).expect("a file")
    }

    /// Waits for a script.
    pub(crate) fn wait_for(&self, name: &str) {
        wait_until(|| self.path(name).exists());
    }
}

pub(crate) fn wait_until(mut is_true: impl FnMut() -> bool) {
    while !is_true() {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A launch to be.
pub(crate) struct Setup {
    pub(crate) options: LaunchOptions,
    pub(crate) timing: Timing,
    program: Program,
    listener: Option<TcpListener>,
}

impl Setup {
    /// Ranks that run a script, on one node.
    pub(crate) fn new(num_ranks: u32, script: &str, folder: &Folder) -> Self {
        let args = ["-c", script, "sh"].map(Into::into);
        let mut program = Program {
            path: "/bin/sh".into(),
            args: args.into(),
        };
        program.args.push(folder.0.path().into());
        Self::of(num_ranks, program)
    }

    pub(crate) fn of(num_ranks: u32, program: Program) -> Self {
        Self {
            options: LaunchOptions {
                standalone: false,
                num_nodes: NumNodes::ONE,
                rank_count: num_ranks.to_string().parse().expect("a number"),
                node_rank: None,
                rdzv_endpoint: None,
                rdzv_id: Some("test".parse().expect("a name")),
                master_addr: None,
                master_port: None,
                max_restarts: 0,
                monitor_interval: "0.01".parse().expect("a time"),
                log_dir: None,
                redirects: None,
                tee: None,
                local_ranks_filter: None,
                signals: "SIGTERM,SIGINT".parse().expect("names"),
            },
            timing: Timing {
                grace: NEVER,
                join: NEVER,
                heartbeat: NEVER,
            },
            program,
            listener: None,
        }
    }

    pub(crate) fn max_restarts(mut self, max_restarts: u32) -> Self {
        self.options.max_restarts = max_restarts;
        self
    }

    pub(crate) fn grace(mut self, millis: u64) -> Self {
        self.timing.grace = Duration::from_millis(millis);
        self
    }

    /// As one of several nodes.
    pub(crate) fn node(mut self, place: &Place, node_rank: Option<u32>) -> Self {
        self.options.num_nodes = place.num_nodes.to_string().parse().expect("a number");
        self.options.node_rank = node_rank.map(NodeRank::new);
        self.options.rdzv_endpoint = Some(place.endpoint.clone());
        self
    }

    /// As node 0 of several nodes, which listens.
    pub(crate) fn first_node(mut self, place: &mut Place) -> Self {
        self.listener = place.listener.take();
        self.node(place, Some(0))
    }

    pub(crate) fn start(self) -> Running {
        let machine = Machine {
            host: "here".to_owned(),
            num_cpus: 1,
            gpus: Err("none".to_owned()),
        };
        let plan = self.options.plan(&machine, self.program).expect("fits");
        let plan = plan.with_timing(self.timing);
        let (out, err) = (Buffer::default(), Buffer::default());
        let inbox = Inbox::default();
        let signals = inbox.signal_sender();
        let io = LaunchIo {
            console: Arc::new(Console::new(out.clone(), err.clone())),
            inbox,
            listener: self.listener,
        };
        // The kernel ties ranks to the thread that starts them.
        let thread = std::thread::spawn(move || launch(&plan, io));
        Running {
            thread,
            signals,
            out,
            err,
        }
    }

    pub(crate) fn run(self) -> Launched {
        self.start().wait()
    }
}

/// A launch that goes on.
pub(crate) struct Running {
    thread: JoinHandle<Result<Outcome, Error>>,
    pub(crate) signals: SignalSender,
    out: Buffer,
    pub(crate) err: Buffer,
}

impl Running {
    pub(crate) fn wait(self) -> Launched {
        Launched {
            result: self.thread.join().expect("no panic"),
            out: self.out,
            err: self.err.text(),
        }
    }
}

/// A launch that is over.
pub(crate) struct Launched {
    pub(crate) result: Result<Outcome, Error>,
    pub(crate) out: Buffer,
    pub(crate) err: String,
}

impl Launched {
    pub(crate) fn outcome(self) -> Outcome {
        self.result.expect("an outcome")
    }

    pub(crate) fn error(self) -> Error {
        self.result.expect_err("an error")
    }

    /// The first failure, which must be a rank's.
    pub(crate) fn root(self) -> RankFailure {
        match self.outcome() {
            Outcome::Failed(report) => rank_failure(report.root),
            other => panic!("no failure: {other:?}"),
        }
    }
}

pub(crate) fn rank_failure(failure: asyncthink_launch::Failure) -> RankFailure {
    match failure {
        asyncthink_launch::Failure::Rank(failure) => failure,
        other => panic!("no rank: {other}"),
    }
}

/// Where several nodes meet.
pub(crate) struct Place {
    pub(crate) num_nodes: u32,
    pub(crate) endpoint: Endpoint,
    /// Held from the beginning, so that the port is nobody else's.
    pub(crate) listener: Option<TcpListener>,
}

impl Place {
    /// Two nodes are to meet where nobody listens.
    pub(crate) fn deserted() -> Self {
        Self {
            num_nodes: 2,
            endpoint: Endpoint::new("127.0.0.1", 1).expect("an endpoint"),
            listener: None,
        }
    }

    pub(crate) fn new(num_nodes: u32) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        Self {
            num_nodes,
            endpoint: Endpoint::new("127.0.0.1", port).expect("an endpoint"),
            listener: Some(listener),
        }
    }
}

/// Whether a process has ended; one that nobody reaps is a zombie.
pub(crate) fn has_ended(pid: &str) -> bool {
    let path = Path::new("/proc").join(pid.trim()).join("stat");
    match std::fs::read_to_string(path) {
        Err(_) => true,
        Ok(stat) => stat
            .rsplit_once(')')
            .is_some_and(|(_, rest)| rest.trim_start().starts_with('Z')),
    }
}
