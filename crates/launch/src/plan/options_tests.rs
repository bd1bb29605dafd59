//! Which options fit together.

use super::*;
use crate::ids::LocalRank;
use crate::plan::Sinks;

fn options() -> LaunchOptions {
    LaunchOptions {
        standalone: false,
        num_nodes: NumNodes::ONE,
        rank_count: RankCount::Count(NonZeroU32::MIN),
        node_rank: None,
        rdzv_endpoint: None,
        rdzv_id: None,
        master_addr: None,
        master_port: None,
        max_restarts: 0,
        monitor_interval: "0.1".parse().expect("a time"),
        log_dir: None,
        redirects: None,
        tee: None,
        local_ranks_filter: None,
        signals: SignalSet::default(),
    }
}

fn two_nodes() -> LaunchOptions {
    LaunchOptions {
        num_nodes: "2".parse().expect("a number"),
        rdzv_endpoint: Some("node0:1234".parse().expect("an endpoint")),
        ..options()
    }
}

fn plan_on(options: LaunchOptions, gpus: Result<usize, String>) -> Result<LaunchPlan, Error> {
    let machine = Machine {
        host: "here".to_owned(),
        num_cpus: 6,
        gpus,
    };
    let program = Program {
        path: "/bin/true".into(),
        args: Vec::new(),
    };
    options.plan(&machine, program)
}

fn plan(options: LaunchOptions) -> Result<LaunchPlan, Error> {
    plan_on(options, Err("no driver".to_owned()))
}

fn refused(options: LaunchOptions) -> String {
    let error = plan(options).expect_err("does not fit");
    assert!(error.is_input());
    error.to_string()
}

#[test]
fn ranks_are_counted_from_the_machine() {
    let count = |rank_count, gpus: Result<usize, String>| {
        let options = LaunchOptions {
            rank_count,
            ..options()
        };
        plan_on(options, gpus).map(|plan| plan.num_local_ranks())
    };
    let none = || Err("no driver".to_owned());
    assert_eq!(count(RankCount::Cpu, Ok(8)).ok(), Some(6));
    assert_eq!(count(RankCount::Gpu, Ok(8)).ok(), Some(8));
    assert_eq!(count(RankCount::Auto, Ok(8)).ok(), Some(8));
    assert_eq!(count(RankCount::Auto, none()).ok(), Some(6));
    let error = count(RankCount::Gpu, none()).expect_err("no GPU");
    assert_eq!(error.to_string(), "`--nproc-per-node gpu`: no driver");
    assert!(error.hint().is_some());
}

#[test]
fn one_node_meets_on_the_loopback() {
    let plain = plan(options()).expect("fits");
    assert_eq!(plain.nodes, Nodes::One);
    assert_eq!(
        (plain.master_addr.as_str(), plain.master_port),
        ("127.0.0.1", None)
    );
    assert_eq!(plain.run_id.as_str(), "none");
    let given = plan(LaunchOptions {
        master_addr: Some("[::1]".to_owned()),
        master_port: Some(7),
        ..options()
    });
    let given = given.expect("fits");
    assert_eq!(
        (given.master_addr.as_str(), given.master_port),
        ("::1", Some(7))
    );
}

#[test]
fn standalone_has_a_run_id_of_its_own_and_no_other_node() {
    let standalone = || LaunchOptions {
        standalone: true,
        ..options()
    };
    assert_ne!(plan(standalone()).expect("fits").run_id.as_str(), "none");
    let message = refused(LaunchOptions {
        standalone: true,
        ..two_nodes()
    });
    assert!(message.contains("`--nnodes 2`"), "{message}");
    let message = refused(LaunchOptions {
        rdzv_endpoint: two_nodes().rdzv_endpoint,
        ..standalone()
    });
    assert!(
        message.contains("`--rdzv-endpoint node0:1234`"),
        "{message}"
    );
}

#[test]
fn several_nodes_need_a_place_to_meet() {
    let message = refused(LaunchOptions {
        rdzv_endpoint: None,
        ..two_nodes()
    });
    assert!(message.contains("`--nnodes 2`"), "{message}");
    let message = refused(LaunchOptions {
        node_rank: Some(NodeRank::new(2)),
        ..two_nodes()
    });
    assert!(message.contains("`--node-rank 2`"), "{message}");
    let message = refused(LaunchOptions {
        master_port: Some(1234),
        ..two_nodes()
    });
    assert!(message.contains("`--master-port 1234`"), "{message}");
}

#[test]
fn the_master_is_where_the_launchers_meet() {
    let both = plan(two_nodes()).expect("fits");
    assert_eq!(
        (both.master_addr.as_str(), both.master_port),
        ("node0", None)
    );
    let fixed = plan(LaunchOptions {
        master_addr: Some("ib0".to_owned()),
        master_port: Some(7),
        ..two_nodes()
    });
    let fixed = fixed.expect("fits");
    assert_eq!(
        (fixed.master_addr.as_str(), fixed.master_port),
        ("ib0", Some(7))
    );
    // The static rendezvous of torchrun.
    let by_master = plan(LaunchOptions {
        rdzv_endpoint: None,
        master_addr: Some("node0".to_owned()),
        ..two_nodes()
    });
    let by_master = by_master.expect("fits");
    assert_eq!(by_master.master_port, None);
    let Nodes::Several { endpoint, .. } = by_master.nodes else {
        panic!("two nodes");
    };
    assert_eq!(endpoint.to_string(), "node0:29500");
    let message = refused(LaunchOptions {
        master_addr: Some("a b".to_owned()),
        ..options()
    });
    assert!(message.contains("`--master-addr a b`"), "{message}");
}

#[test]
fn only_local_ranks_that_there_are() {
    let two = || LaunchOptions {
        rank_count: "2".parse().expect("a number"),
        ..options()
    };
    let message = refused(LaunchOptions {
        tee: Some("0:3,2:1".parse().expect("a list")),
        ..two()
    });
    assert!(
        message.starts_with("`--tee` names local rank 2"),
        "{message}"
    );
    let message = refused(LaunchOptions {
        local_ranks_filter: Some("1,2".parse().expect("a list")),
        ..two()
    });
    assert!(message.starts_with("`--local-ranks-filter`"), "{message}");
}

#[test]
fn where_output_goes() {
    let sinks = |options: LaunchOptions| {
        let options = LaunchOptions {
            rank_count: "2".parse().expect("a number"),
            ..options
        };
        let output = plan(options).expect("fits").output;
        let show = |sinks: Sinks| (sinks.file, sinks.console);
        let (out, err) = output.sinks(LocalRank::new(1));
        (show(out), show(err))
    };
    let console = (false, true);
    let file = (true, false);
    let both = (true, true);
    assert_eq!(sinks(options()), (console, console));
    let spec = |text: &str| Some(text.parse::<StreamSpec>().expect("a spec"));
    let redirects = LaunchOptions {
        redirects: spec("1"),
        ..options()
    };
    assert_eq!(sinks(redirects), (file, console));
    let tee = LaunchOptions {
        tee: spec("1:2"),
        redirects: spec("3"),
        ..options()
    };
    assert_eq!(sinks(tee), (file, both));
    let logged = LaunchOptions {
        log_dir: Some("logs".into()),
        local_ranks_filter: Some("0".parse().expect("a list")),
        ..options()
    };
    assert_eq!(sinks(logged), (file, file));
    let hidden = LaunchOptions {
        local_ranks_filter: Some("0".parse().expect("a list")),
        ..options()
    };
    assert_eq!(sinks(hidden), ((false, false), (false, false)));
}

#[test]
fn a_log_folder_that_is_a_file_is_refused() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let message = refused(LaunchOptions {
        log_dir: Some(file.path().to_owned()),
        ..options()
    });
    assert!(message.contains("is not a folder"), "{message}");
}
