//! Every operation against plain arithmetic, and what is counted and compared.

use tch::{Device, Kind, Tensor};

use super::{LONG, given, join, serve, values, world};
use crate::collectives::{Operation, ProcessGroup, Reduction, Traffic};
use crate::error::Error;

const LEN: usize = 12;

/// The reduction of what all ranks put in.
fn reduced(world_size: usize, reduction: Reduction) -> Vec<f64> {
    (0..world_size)
        .map(|rank| values(&given(rank, LEN, Kind::Double)))
        .reduce(|left, right| {
            let pairs = left.into_iter().zip(right);
            pairs
                .map(|(a, b)| match reduction {
                    Reduction::Sum => a + b,
                    Reduction::Max => a.max(b),
                    Reduction::Min => a.min(b),
                })
                .collect()
        })
        .unwrap()
}

/// A world of every size that the tests use, the smallest without a store.
fn worlds(body: impl Fn(&ProcessGroup) + Sync) {
    body(&ProcessGroup::single());
    for world_size in [2, 4] {
        world(world_size, LONG, &body);
    }
}

#[test]
fn all_reduce_gives_every_rank_the_reduction() {
    worlds(|group| {
        for reduction in [Reduction::Sum, Reduction::Max, Reduction::Min] {
            let expected = reduced(group.world_size(), reduction);
            for kind in [Kind::Float, Kind::Double, Kind::Int64, Kind::BFloat16] {
                let mut tensor = given(group.rank(), LEN, kind).view([3, 4]);
                group
                    .all_reduce(&mut tensor, reduction)
                    .unwrap()
                    .wait()
                    .unwrap();
                assert_eq!(values(&tensor), expected, "{reduction:?} {kind:?}");
                assert_eq!((tensor.size(), tensor.kind()), (vec![3, 4], kind));
            }
        }
    });
}

#[test]
fn a_list_is_reduced_as_its_tensors_are() {
    worlds(|group| {
        let whole = given(group.rank(), LEN, Kind::Float);
        let empty = Tensor::zeros([0], (Kind::Float, Device::Cpu));
        let mut list = [
            whole.narrow(0, 0, 5).copy(),
            empty,
            whole.narrow(0, 5, 7).copy(),
        ];
        group
            .all_reduce_list(&mut list, Reduction::Sum)
            .unwrap()
            .wait()
            .unwrap();
        let joined = Tensor::cat(&list, 0);
        let expected = reduced(group.world_size(), Reduction::Sum);
        assert_eq!(values(&joined), expected);
    });
}

#[test]
fn broadcast_gives_every_rank_the_roots() {
    worlds(|group| {
        for root in 0..group.world_size() {
            // A parameter, which is written to though it requires a gradient.
            let mut tensor = given(group.rank(), LEN, Kind::Float).set_requires_grad(true);
            group.broadcast(&mut tensor, root).unwrap().wait().unwrap();
            let expected = values(&given(root, LEN, Kind::Float));
            assert_eq!(values(&tensor.detach()), expected);
            assert!(tensor.is_leaf() && tensor.requires_grad());
        }
    });
}

#[test]
fn reduce_scatter_and_all_gather_are_the_halves_of_an_all_reduce() {
    worlds(|group| {
        let len = LEN / group.world_size();
        for kind in [Kind::Float, Kind::BFloat16] {
            for reduction in [Reduction::Sum, Reduction::Max] {
                let input = given(group.rank(), LEN, kind).view([2, 6]);
                let size = i64::try_from(len).unwrap();
                let mut part = Tensor::zeros([size], (kind, Device::Cpu));
                group
                    .reduce_scatter(&input, &mut part, reduction)
                    .unwrap()
                    .wait()
                    .unwrap();
                let expected = reduced(group.world_size(), reduction);
                let start = group.rank() * len;
                assert_eq!(values(&part), expected[start..start + len]);
                assert_eq!(values(&input), values(&given(group.rank(), LEN, kind)));

                let mut whole = Tensor::zeros([2, 6], (kind, Device::Cpu)).set_requires_grad(true);
                group.all_gather(&part, &mut whole).unwrap().wait().unwrap();
                assert_eq!(values(&whole.detach()), expected);
            }
        }
        let scalar = given(group.rank(), 1, Kind::Int64).squeeze();
        let world_size = i64::try_from(group.world_size()).unwrap();
        let mut all = Tensor::zeros([world_size], (Kind::Int64, Device::Cpu));
        group.all_gather(&scalar, &mut all).unwrap().wait().unwrap();
        let expected: Vec<f64> = (0..group.world_size())
            .map(|rank| values(&given(rank, 1, Kind::Int64))[0])
            .collect();
        assert_eq!(values(&all), expected);
    });
}

#[test]
fn tensors_go_round_a_ring_in_order() {
    world(3, LONG, |group| {
        let (next, last) = ((group.rank() + 1) % 3, (group.rank() + 2) % 3);
        for round in 0..2 {
            let own = given(group.rank() + round, LEN, Kind::Float);
            let mut other = own.zeros_like();
            let sent = group.send(&own, next).unwrap();
            group.recv(&mut other, last).unwrap().wait().unwrap();
            sent.wait().unwrap();
            assert_eq!(
                values(&other),
                values(&given(last + round, LEN, Kind::Float))
            );
        }
        group.barrier().unwrap();
    });
}

#[test]
fn traffic_is_what_this_rank_put_in() {
    let traffic = world(2, LONG, |group| {
        assert_eq!(group.traffic(), Traffic::default(), "meeting costs nothing");
        let mut tensor = given(group.rank(), LEN, Kind::Float);
        group
            .all_reduce(&mut tensor, Reduction::Sum)
            .unwrap()
            .wait()
            .unwrap();
        let mut list = [tensor.copy(), tensor.narrow(0, 0, 3).copy()];
        group
            .all_reduce_list(&mut list, Reduction::Max)
            .unwrap()
            .wait()
            .unwrap();
        group.broadcast(&mut tensor, 1).unwrap().wait().unwrap();
        let mut part = Tensor::zeros([6], (Kind::Float, Device::Cpu));
        group
            .reduce_scatter(&tensor, &mut part, Reduction::Sum)
            .unwrap()
            .wait()
            .unwrap();
        group
            .all_gather(&part, &mut tensor)
            .unwrap()
            .wait()
            .unwrap();
        group.check_same("nothing", 1).unwrap();
        if group.rank() == 0 {
            group.send(&part, 1).unwrap().wait().unwrap();
        } else {
            group.recv(&mut part, 0).unwrap().wait().unwrap();
        }
        group.barrier().unwrap();
        group.monitored_barrier().unwrap();
        group.traffic()
    });
    let expected = Traffic {
        all_reduce_bytes: 48 + 48 + 12,
        broadcast_bytes: 0,
        reduce_scatter_bytes: 48,
        all_gather_bytes: 24 + 16,
        send_bytes: 24,
    };
    assert_eq!(traffic[0], expected);
    let expected = Traffic {
        broadcast_bytes: 48,
        send_bytes: 0,
        ..expected
    };
    assert_eq!(traffic[1], expected);
    assert_eq!(traffic[1].total_bytes(), 48 + 48 + 12 + 48 + 48 + 24 + 16);

    let single = ProcessGroup::single();
    let mut tensor = given(0, LEN, Kind::Float);
    let work = single.all_reduce(&mut tensor, Reduction::Sum).unwrap();
    assert!(work.is_completed());
    work.wait().unwrap();
    assert_eq!(single.traffic(), Traffic::default());
}

#[test]
fn the_last_operation_is_kept_with_its_phase() {
    world(2, LONG, |group| {
        assert_eq!(group.last_operation().unwrap().operation, Operation::Join);
        group.set_phase("grpo step 12: reduce gradients");
        let mut tensor = given(0, LEN, Kind::Double);
        group
            .all_reduce(&mut tensor, Reduction::Sum)
            .unwrap()
            .wait()
            .unwrap();
        let last = group.last_operation().unwrap();
        assert_eq!(last.operation, Operation::AllReduce);
        assert_eq!((last.sequence, last.bytes), (2, 96));
        assert_eq!(last.phase, "grpo step 12: reduce gradients");
    });
}

#[test]
fn ranks_that_differ_are_named() {
    ProcessGroup::single().check_same("anything", 3).unwrap();
    let errors = world(4, LONG, |group| {
        group.check_same("data order of epoch 1", 7).unwrap();
        let digest = if group.rank() == 2 { 8 } else { 7 };
        let error = group
            .check_same("data order of epoch 2", digest)
            .unwrap_err();
        group.check_same("afterwards", 9).unwrap();
        error
    });
    for error in errors {
        let expected = "`data order of epoch 2` differs between ranks: rank 2 has 0000000000000008; \
                        ranks 0, 1, 3 have 0000000000000007";
        assert_eq!(error.to_string(), expected);
        assert!(error.hint().is_some());
    }
}

#[test]
fn collectives_that_differ_and_fit_together_are_found() {
    world(2, LONG, |group| {
        let mut tensor = given(0, LEN, Kind::Float);
        let reduction = if group.rank() == 0 {
            Reduction::Sum
        } else {
            Reduction::Max
        };
        group
            .check_same("collectives", group.order_digest())
            .unwrap();
        group
            .all_reduce(&mut tensor, reduction)
            .unwrap()
            .wait()
            .unwrap();
        let error = group
            .check_same("collectives", group.order_digest())
            .unwrap_err();
        assert!(matches!(error, Error::RanksDiffer(_)), "{error}");
    });
}

#[test]
fn wrong_arguments_are_refused_before_anything_moves() {
    world(2, LONG, |group| {
        let message = |result: crate::Result<crate::Work<'_>>| result.unwrap_err().to_string();
        let float = |len: i64| Tensor::zeros([len], (Kind::Float, Device::Cpu));
        let mut strided = float(6).view([2, 3]).transpose(0, 1);
        assert_eq!(
            message(group.all_reduce(&mut strided, Reduction::Sum)),
            "`all_reduce`: `tensor` must be contiguous, not strided by [1, 3]"
        );
        assert_eq!(
            message(group.all_reduce(&mut Tensor::new(), Reduction::Sum)),
            "`all_reduce`: `tensor` must be a tensor, not undefined"
        );
        let mut list = [float(1), float(1).to_kind(Kind::Half)];
        assert_eq!(
            message(group.all_reduce_list(&mut list, Reduction::Sum)),
            "`all_reduce`: `tensor` must be of kind Float, not Half"
        );
        assert_eq!(
            message(group.broadcast(&mut float(1), 2)),
            "`broadcast`: `root` must be a rank below 2, not 2"
        );
        assert_eq!(
            message(group.reduce_scatter(&float(5), &mut float(2), Reduction::Sum)),
            "`reduce_scatter`: `input` must be 4 elements, 2 of `output` for each rank, not 5"
        );
        assert_eq!(
            message(group.all_gather(&float(2), &mut float(2))),
            "`all_gather`: `output` must be 4 elements, 2 of `input` for each rank, not 2"
        );
        let own = group.rank();
        assert_eq!(
            message(group.send(&float(1), own)),
            format!("`send`: `to` must be another rank than {own} of 2, not {own}")
        );
        group.check_same("afterwards", 1).unwrap();
    });
}

#[test]
fn worlds_have_sizes_that_fit() {
    let store = serve();
    let error = |rank, world_size| {
        let options = super::options(rank, world_size, LONG);
        let error = ProcessGroup::new(&store, Device::Cpu, &options).unwrap_err();
        error.to_string()
    };
    assert_eq!(
        error(0, 0),
        "`process_group`: `world_size` must be at least 1, not 0"
    );
    assert_eq!(
        error(2, 2),
        "`process_group`: `rank` must be below 2, not 2"
    );
    assert_eq!(join(store.port(), 0, 1, LONG).world_size(), 1);
}
