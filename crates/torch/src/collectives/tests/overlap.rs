//! Operations that run while others do.

use std::time::Instant;

use tch::{Device, Kind, Tensor};

use super::{LONG, given, values, world};
use crate::collectives::Reduction;

#[test]
fn two_operations_run_at_once_and_end_in_any_order() {
    world(2, LONG, |group| {
        let options = (Kind::Float, Device::Cpu);
        let (mut large, mut small) = (Tensor::ones([1 << 20], options), Tensor::ones([4], options));
        let first = group.all_reduce(&mut large, Reduction::Sum).unwrap();
        let second = group.all_reduce(&mut small, Reduction::Sum).unwrap();
        second.wait().unwrap();
        let start = Instant::now();
        while !first.is_completed() {
            assert!(start.elapsed() < LONG);
            std::thread::yield_now();
        }
        first.wait().unwrap();
        assert_eq!(values(&small), [2.0; 4]);
        assert!(
            large
                .eq_tensor(&(Tensor::ones([1 << 20], options) * 2.0))
                .all()
                .int64_value(&[])
                == 1
        );
    });
}

#[test]
fn dropping_waits() {
    world(2, LONG, |group| {
        let input = given(group.rank(), 6, Kind::Float);
        let mut part = Tensor::zeros([3], (Kind::Float, Device::Cpu));
        drop(
            group
                .reduce_scatter(&input, &mut part, Reduction::Sum)
                .unwrap(),
        );
        let sum = given(0, 6, Kind::Float) + given(1, 6, Kind::Float);
        let start = i64::try_from(group.rank()).unwrap() * 3;
        assert_eq!(values(&part), values(&sum.narrow(0, start, 3)));
    });
}

/// Prints what an operation takes: `cargo test -p asyncthink-torch --lib -- --ignored --nocapture timing`.
#[test]
#[ignore = "measures, and asserts nothing"]
fn timing_of_16_mib_between_two_ranks() {
    crate::keep_freed_memory();
    world(2, LONG, |group| {
        let options = (Kind::Float, Device::Cpu);
        let mut whole = Tensor::ones([4 << 20], options);
        let mut part = Tensor::ones([2 << 20], options);
        let mut best = [f64::INFINITY; 3];
        for _ in 0..10 {
            let mut measure = |index: usize, work: &mut dyn FnMut()| {
                group.barrier().unwrap();
                let start = Instant::now();
                work();
                best[index] = best[index].min(start.elapsed().as_secs_f64());
            };
            measure(0, &mut || {
                let work = group.all_reduce(&mut whole, Reduction::Max).unwrap();
                work.wait().unwrap();
            });
            measure(1, &mut || {
                let work = group.reduce_scatter(&whole, &mut part, Reduction::Max);
                work.unwrap().wait().unwrap();
            });
            measure(2, &mut || {
                let work = group.all_gather(&part, &mut whole).unwrap();
                work.wait().unwrap();
            });
        }
        if group.rank() == 0 {
            let [all_reduce, reduce_scatter, all_gather] = best.map(|secs| secs * 1e3);
            println!(
                "16 MiB, 2 ranks, best of 10: all_reduce {all_reduce:.1} ms, \
                 reduce_scatter {reduce_scatter:.1} ms, all_gather {all_gather:.1} ms"
            );
        }
    });
}
