//! Every decision of node 0, without a clock.

use super::*;
use crate::failure::Exit;
use crate::failure::tests::rank_failure;

fn node(number: u32) -> NodeRank {
    NodeRank::new(number)
}

fn member(num_local_ranks: u32) -> Member {
    Member {
        host: format!("host{num_local_ranks}"),
        num_local_ranks: NonZeroU32::new(num_local_ranks).expect("not zero"),
    }
}

/// Two nodes with one and two ranks, started.
fn running(max_restarts: u32) -> Coordinator {
    let mut coordinator = Coordinator::new(2, max_restarts);
    coordinator.join(Some(node(0)), member(1)).expect("taken");
    assert_eq!(coordinator.take_actions(), []);
    coordinator.join(None, member(2)).expect("taken");
    assert_eq!(started(&mut coordinator), (0, vec![0, 1], 3, None));
    coordinator
}

/// Attempt, first ranks of the nodes, world size and cause of the one action.
fn started(coordinator: &mut Coordinator) -> (u32, Vec<u32>, u32, Option<String>) {
    let mut actions = coordinator.take_actions();
    let Some(Action::Start {
        attempt,
        shares,
        world_size,
        cause,
    }) = actions.pop()
    else {
        panic!("no start");
    };
    assert_eq!(actions, []);
    let first_ranks = shares.iter().map(|share| share.first_rank.get());
    (attempt, first_ranks.collect(), world_size, cause)
}

fn done(attempt: u32) -> Report {
    Report::Done { attempt }
}

fn stopped(attempt: u32, failures: &[(u64, Failure)]) -> Report {
    let failures = failures.iter().map(|(millis_ago, failure)| PastFailure {
        failure: failure.clone(),
        millis_ago: *millis_ago,
    });
    Report::Stopped {
        attempt,
        failures: failures.collect(),
    }
}

fn stop(attempt: u32, signal: Option<i32>) -> Vec<Action> {
    vec![Action::Stop { attempt, signal }]
}

fn end(end: End) -> Vec<Action> {
    vec![Action::End(end)]
}

/// The report that a failed launch ends with.
fn failed(coordinator: &mut Coordinator) -> FailureReport {
    match coordinator.take_actions().pop() {
        Some(Action::End(End::Failed(report))) => report,
        other => panic!("no failure: {other:?}"),
    }
}

#[test]
fn all_nodes_done_is_the_end() {
    let mut coordinator = running(0);
    let now = Instant::now();
    coordinator.report(node(1), done(0), now);
    assert_eq!(coordinator.take_actions(), []);
    // Its work is done, so that nothing is lost with it.
    coordinator.lose(node(1), "gone", now);
    coordinator.report(node(0), done(0), now);
    assert_eq!(coordinator.take_actions(), end(End::Done));
    assert!(coordinator.has_ended());
}

#[test]
fn nodes_that_do_not_fit_are_refused() {
    let mut coordinator = Coordinator::new(2, 0);
    coordinator.join(Some(node(0)), member(1)).expect("taken");
    let refused = |coordinator: &mut Coordinator, wanted: Option<u32>| {
        let wanted = wanted.map(node);
        coordinator.join(wanted, member(1)).expect_err("refused")
    };
    assert_eq!(
        refused(&mut coordinator, Some(0)),
        "node 0 has joined already, from host1"
    );
    assert!(refused(&mut coordinator, Some(2)).contains("`--node-rank 2`"));
    coordinator.join(Some(node(1)), member(1)).expect("taken");
    assert_eq!(
        refused(&mut coordinator, None),
        "all 2 nodes have joined already"
    );
}

#[test]
fn the_first_failure_is_the_root_whoever_reports_it_first() {
    let mut coordinator = running(0);
    let now = Instant::now();
    coordinator.report(node(0), Report::Failed { attempt: 0 }, now);
    assert_eq!(coordinator.take_actions(), stop(0, None));
    let follows = rank_failure(0, Exit::Code(1));
    let root = rank_failure(1, Exit::Signal(9));
    coordinator.report(node(0), stopped(0, &[(100, follows.clone())]), now);
    coordinator.report(node(1), stopped(0, &[(200, root.clone())]), now);
    let report = failed(&mut coordinator);
    assert_eq!((report.root, report.others), (root, vec![follows]));
}

#[test]
fn restarts_are_counted_and_say_why() {
    let mut coordinator = running(2);
    let now = Instant::now();
    let failure = rank_failure(1, Exit::Code(3));
    for attempt in 0..2 {
        coordinator.report(node(1), stopped(attempt, &[(0, failure.clone())]), now);
        assert_eq!(coordinator.take_actions(), stop(attempt, None));
        // A report of an attempt long over changes nothing.
        coordinator.report(node(0), stopped(attempt + 7, &[]), now);
        coordinator.report(node(0), stopped(attempt, &[]), now);
        let cause = Some(failure.to_string());
        assert_eq!(
            started(&mut coordinator),
            (attempt + 1, vec![0, 1], 3, cause)
        );
    }
    coordinator.report(node(0), Report::Failed { attempt: 2 }, now);
    coordinator.report(node(0), stopped(2, &[(0, failure.clone())]), now);
    coordinator.report(node(1), stopped(2, &[]), now);
    assert_eq!(failed(&mut coordinator).root, failure);
}

#[test]
fn a_failure_of_one_node_stops_one_that_is_done() {
    let mut coordinator = running(1);
    let now = Instant::now();
    coordinator.report(node(0), done(0), now);
    let failure = rank_failure(1, Exit::Code(3));
    coordinator.report(node(1), stopped(0, &[(0, failure)]), now);
    let actions = coordinator.take_actions();
    assert_eq!(actions.first(), stop(0, None).first());
    assert!(matches!(
        actions.last(),
        Some(Action::Start { attempt: 1, .. })
    ));
}

#[test]
fn wrong_input_is_the_end() {
    let mut coordinator = running(5);
    let now = Instant::now();
    let wrong = rank_failure(0, Exit::Code(2));
    coordinator.report(node(0), stopped(0, &[(0, wrong)]), now);
    coordinator.report(node(1), stopped(0, &[]), now);
    assert!(failed(&mut coordinator).is_input());
}

#[test]
fn a_lost_node_is_a_failure_and_may_come_again() {
    let mut coordinator = running(1);
    let now = Instant::now();
    coordinator.lose(node(1), "nothing was heard", now);
    assert_eq!(coordinator.take_actions(), stop(0, None));
    coordinator.report(node(0), stopped(0, &[]), now);
    assert!(coordinator.is_gathering());
    assert_eq!(coordinator.missing(), [node(1)]);
    // With another number of ranks, which the world follows.
    coordinator.join(Some(node(1)), member(4)).expect("taken");
    let (attempt, _, world_size, cause) = started(&mut coordinator);
    assert_eq!((attempt, world_size), (1, 5));
    let cause = cause.expect("a restart");
    assert_eq!(cause, "node 1 (host2) is lost: nothing was heard");
    // The second time there is no attempt left.
    coordinator.lose(node(1), "nothing was heard", now);
    coordinator.take_actions();
    coordinator.report(node(0), stopped(1, &[]), now);
    assert!(failed(&mut coordinator).root.to_string().contains("host4"));
}

#[test]
fn a_node_that_does_not_come_back_ends_it_with_the_first_reason() {
    let mut coordinator = running(1);
    let now = Instant::now();
    coordinator.lose(node(1), "nothing was heard", now);
    coordinator.report(node(0), stopped(0, &[]), now);
    coordinator.take_actions();
    coordinator.give_up(Duration::from_mins(10));
    let report = failed(&mut coordinator);
    assert!(report.root.to_string().contains("is lost"));
    assert_eq!(
        report.others[0].to_string(),
        "node 1 of 2 did not join within 600 s"
    );
}

#[test]
fn nodes_that_never_come_are_named() {
    let mut coordinator = Coordinator::new(3, 1);
    coordinator.join(Some(node(1)), member(1)).expect("taken");
    coordinator.give_up(Duration::from_secs(9));
    assert_eq!(
        failed(&mut coordinator).root.to_string(),
        "nodes 0, 2 of 3 did not join within 9 s"
    );
}

#[test]
fn a_signal_ends_everything_without_a_restart() {
    let mut coordinator = running(3);
    let now = Instant::now();
    coordinator.report(node(1), Report::Signalled { signal: 15 }, now);
    assert_eq!(coordinator.take_actions(), stop(0, Some(15)));
    let failure = rank_failure(1, Exit::Code(143));
    coordinator.report(node(1), stopped(0, &[(0, failure)]), now);
    coordinator.report(node(0), done(0), now);
    assert_eq!(coordinator.take_actions(), end(End::Signalled(15)));

    // While ranks are being stopped for another reason.
    let mut coordinator = running(3);
    coordinator.report(node(0), Report::Failed { attempt: 0 }, now);
    coordinator.report(node(1), Report::Signalled { signal: 2 }, now);
    coordinator.report(node(0), stopped(0, &[]), now);
    coordinator.report(node(1), stopped(0, &[]), now);
    assert_eq!(
        coordinator.take_actions().pop(),
        end(End::Signalled(2)).pop()
    );

    // While nodes are waited for.
    let mut coordinator = Coordinator::new(2, 0);
    coordinator.join(None, member(1)).expect("taken");
    coordinator.report(node(0), Report::Signalled { signal: 15 }, now);
    assert_eq!(coordinator.take_actions(), end(End::Signalled(15)));
    assert!(coordinator.join(None, member(1)).is_err());
}

#[test]
fn an_end_without_a_reason_is_no_success() {
    let mut coordinator = running(3);
    let now = Instant::now();
    coordinator.report(node(1), stopped(0, &[]), now);
    coordinator.report(node(0), stopped(0, &[]), now);
    assert!(
        failed(&mut coordinator)
            .root
            .to_string()
            .contains("no node says why")
    );
}

#[test]
fn node_0_that_cannot_go_on_ends_it_for_all() {
    let mut coordinator = running(3);
    coordinator.abort("disk full");
    assert_eq!(coordinator.take_actions(), stop(0, None));
    coordinator.report(node(1), stopped(0, &[]), Instant::now());
    let root = failed(&mut coordinator).root.to_string();
    assert_eq!(root, "node 0 (host1) is lost: disk full");

    let mut coordinator = Coordinator::new(2, 3);
    coordinator.abort("disk full");
    assert!(
        failed(&mut coordinator)
            .root
            .to_string()
            .contains("disk full")
    );
}
