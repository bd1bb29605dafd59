//! Several launchers on this machine.

use asyncthink_launch::{Endpoint, Error, Exit, Failure, Outcome, StopSignal};

use crate::support::{Folder, Place, Setup, rank_failure};

/// Node 1 has one rank, rank 2, which does what the test puts in `{}` once
/// both ranks of node 0 are ready.
const BESIDE: &str = "
    if [ $RANK = 2 ]; then
        until [ -e $1/0 ] && [ -e $1/1 ]; do sleep 0.01; done
        {}
    fi
    trap 'echo terminated; exit 143' TERM
    : > $1/$RANK
    while :; do sleep 0.01; done";

#[test]
fn ranks_are_counted_through_the_nodes() {
    let folder = Folder::new();
    let script = "echo $GROUP_RANK of $GROUP_WORLD_SIZE, $LOCAL_RANK of $LOCAL_WORLD_SIZE, of $WORLD_SIZE > $1/$RANK
        echo $MASTER_ADDR:$MASTER_PORT > $1/master.$RANK";
    let mut place = Place::new(3);
    let second = Setup::new(3, script, &folder).node(&place, Some(1)).start();
    let third = Setup::new(1, script, &folder).node(&place, Some(2)).start();
    let first = Setup::new(2, script, &folder)
        .first_node(&mut place)
        .start();
    for running in [first, second, third] {
        assert_eq!(running.wait().outcome(), Outcome::Done);
    }
    let expected = [
        "0 of 3, 0 of 2",
        "0 of 3, 1 of 2",
        "1 of 3, 0 of 3",
        "1 of 3, 1 of 3",
        "1 of 3, 2 of 3",
        "2 of 3, 0 of 1",
    ];
    let master = folder.read("master.0");
    assert!(master.starts_with("127.0.0.1:"), "{master}");
    for (rank, expected) in expected.iter().enumerate() {
        assert_eq!(
            folder.read(&rank.to_string()),
            format!("{expected}, of 6\n")
        );
        assert_eq!(folder.read(&format!("master.{rank}")), master);
    }
}

#[test]
fn a_failure_on_one_node_ends_all() {
    let folder = Folder::new();
    let script = BESIDE.replace("{}", "exit 3");
    let mut place = Place::new(2);
    let first = Setup::new(2, &script, &folder)
        .first_node(&mut place)
        .start();
    let second = Setup::new(1, &script, &folder)
        .node(&place, Some(1))
        .start();
    let first = first.wait();
    assert_eq!(first.out.text().lines().count(), 2);
    let outcome = first.outcome();
    assert_eq!(second.wait().outcome(), outcome);
    let Outcome::Failed(report) = outcome else {
        panic!("no failure");
    };
    assert_eq!(report.others, []);
    let root = rank_failure(report.root);
    assert_eq!((root.rank.get(), root.local_rank.get()), (2, 0));
    assert_eq!((root.node_rank.get(), root.exit), (1, Exit::Code(3)));
}

#[test]
fn all_nodes_restart_together() {
    let folder = Folder::new();
    let script = "
        echo $TORCHELASTIC_RESTART_COUNT >> $1/$RANK
        until [ \"$(cat $1/0)\" = \"$(cat $1/1)\" ]; do sleep 0.01; done
        [ $RANK = 0 ] || [ $TORCHELASTIC_RESTART_COUNT = 2 ] || exit 1
        [ $TORCHELASTIC_RESTART_COUNT = 2 ] || while :; do sleep 0.01; done";
    let mut place = Place::new(2);
    let first = Setup::new(1, script, &folder)
        .max_restarts(2)
        .first_node(&mut place)
        .start();
    // The restarts that count are those of node 0.
    let second = Setup::new(1, script, &folder).node(&place, Some(1)).start();
    assert_eq!(first.wait().outcome(), Outcome::Done);
    let second = second.wait();
    assert!(
        second.err.contains("[launch]   restart 2 of 2\n"),
        "{}",
        second.err
    );
    assert_eq!(second.outcome(), Outcome::Done);
    assert_eq!(folder.read("0"), "0\n1\n2\n");
    assert_eq!(folder.read("1"), "0\n1\n2\n");
}

#[test]
fn a_signal_to_one_node_ends_all() {
    let folder = Folder::new();
    let script = BESIDE.replace("{}", ": > $1/2");
    let mut place = Place::new(2);
    let first = Setup::new(2, &script, &folder)
        .max_restarts(3)
        .first_node(&mut place)
        .start();
    let second = Setup::new(1, &script, &folder)
        .node(&place, Some(1))
        .start();
    folder.wait_for("2");
    second.signals.send(StopSignal::Term);
    let ended = Outcome::Signalled(StopSignal::Term);
    assert_eq!(second.wait().outcome(), ended);
    let first = first.wait();
    assert_eq!(first.out.text().lines().count(), 2);
    assert_eq!(first.outcome(), ended);
}

#[test]
fn a_signal_ends_the_wait_for_others() {
    let folder = Folder::new();
    let mut place = Place::new(3);
    let first = Setup::new(1, "", &folder).first_node(&mut place).start();
    let second = Setup::new(1, "", &folder).node(&place, Some(1)).start();
    crate::support::wait_until(|| first.err.text().contains("node 1 (here) joined, ranks: 1"));
    first.signals.send(StopSignal::Int);
    let ended = Outcome::Signalled(StopSignal::Int);
    assert_eq!(first.wait().outcome(), ended);
    assert_eq!(second.wait().outcome(), ended);

    // And before node 0 is there at all.
    let place = Place::deserted();
    let alone = Setup::new(1, "", &folder).node(&place, Some(1)).start();
    alone.signals.send(StopSignal::Term);
    assert_eq!(alone.wait().outcome(), Outcome::Signalled(StopSignal::Term));
}

#[test]
fn nodes_without_a_number_find_their_places() {
    let folder = Folder::new();
    let mut place = Place::new(2);
    let listener = place.listener.take();
    // The port is taken, so this node is not the first.
    let second = Setup::new(1, ": > $1/$GROUP_RANK", &folder)
        .node(&place, None)
        .start();
    crate::support::wait_until(|| second.err.text().contains("joining node 0"));
    place.listener = listener;
    let first = Setup::new(1, ": > $1/$GROUP_RANK", &folder)
        .first_node(&mut place)
        .start();
    assert_eq!(first.wait().outcome(), Outcome::Done);
    assert_eq!(second.wait().outcome(), Outcome::Done);
    assert!(folder.path("0").exists() && folder.path("1").exists());
}

#[test]
fn a_node_that_does_not_fit_is_told_why() {
    let folder = Folder::new();
    let mut place = Place::new(2);
    let first = Setup::new(1, "", &folder).first_node(&mut place).start();
    let mut other = Setup::new(1, "", &folder).node(&place, Some(1));
    other.options.rdzv_id = Some("other".parse().expect("a name"));
    let error = other.run().error();
    assert!(error.is_input() && error.hint().is_some());
    let Error::Refused { reason, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(
        reason,
        "`--rdzv-id` is `test` on node 0 and `other` on this one"
    );
    let place_of_three = Place {
        listener: None,
        ..Place::new(3)
    };
    let mut other = Setup::new(1, "", &folder).node(&place_of_three, Some(2));
    other.options.rdzv_endpoint = Some(place.endpoint.clone());
    let error = other.run().error().to_string();
    assert!(
        error.contains("`--nnodes` is `2` on node 0 and `3`"),
        "{error}"
    );
    // The right one still gets in.
    let second = Setup::new(1, "", &folder).node(&place, Some(1)).start();
    assert_eq!(second.wait().outcome(), Outcome::Done);
    assert_eq!(first.wait().outcome(), Outcome::Done);
}

#[test]
fn a_node_that_does_not_come_is_named() {
    let folder = Folder::new();
    let mut place = Place::new(2);
    let mut first = Setup::new(1, "", &folder).first_node(&mut place);
    first.timing.join = std::time::Duration::from_millis(50);
    let Outcome::Failed(report) = first.run().outcome() else {
        panic!("no failure");
    };
    let Failure::Missing { node_ranks, .. } = report.root else {
        panic!("{}", report.root);
    };
    assert_eq!(node_ranks.first().map(|node| node.get()), Some(1));

    let place = Place::deserted();
    let mut second = Setup::new(1, "", &folder).node(&place, Some(1));
    second.timing.join = std::time::Duration::ZERO;
    let error = second.run().error();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(!error.is_input());
}

#[test]
fn an_endpoint_without_an_address_is_an_error_at_once() {
    let folder = Folder::new();
    for node_rank in [Some(1), None] {
        // Joining would be tried for an hour.
        let mut setup = Setup::new(1, "", &folder).node(&Place::deserted(), node_rank);
        setup.options.rdzv_endpoint = Endpoint::new("no-such-host.invalid", 29400);
        let error = setup.run().error();
        let said = "`--rdzv-endpoint`: host `no-such-host.invalid` cannot be resolved: ";
        assert!(error.to_string().starts_with(said), "{error}");
        assert!(error.is_input() && error.hint().is_some());
    }
}
