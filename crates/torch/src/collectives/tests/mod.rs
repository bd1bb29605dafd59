//! Worlds of several ranks: threads of this process where all live, processes where one is to die.

mod failures;
mod overlap;
mod values;

use std::time::Duration;

use tch::{Device, Kind, Tensor};

use super::{GroupOptions, ProcessGroup, Store, StoreOptions};

const HOST: &str = "127.0.0.1";

/// Enough for a busy machine.
const LONG: Duration = Duration::from_mins(1);

fn serve() -> Store {
    Store::serve(HOST, 0, &StoreOptions::default()).unwrap()
}

fn options(rank: usize, world_size: usize, timeout: Duration) -> GroupOptions {
    GroupOptions {
        rank,
        world_size,
        timeout,
        name: "world".to_owned(),
        store_rank: None,
    }
}

fn join(port: u16, rank: usize, world_size: usize, timeout: Duration) -> ProcessGroup {
    let store = Store::connect(HOST, port, &StoreOptions::default()).unwrap();
    ProcessGroup::new(&store, Device::Cpu, &options(rank, world_size, timeout)).unwrap()
}

/// Runs `body` as every rank of a world, each a thread with connections of its own; gives the results in their order.
fn world<T: Send>(
    world_size: usize,
    timeout: Duration,
    body: impl Fn(&ProcessGroup) -> T + Sync,
) -> Vec<T> {
    let store = serve();
    let port = store.port();
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..world_size)
            .map(|rank| {
                let body = &body;
                scope.spawn(move || {
                    let group = join(port, rank, world_size, timeout);
                    let result = body(&group);
                    // Nobody closes connections while others still read from them; where ranks have failed, they do.
                    let _ = group.within(Duration::from_secs(2)).monitored_barrier();
                    result
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// What rank `rank` puts in: small whole numbers, whose sums are exact in every kind.
fn given(rank: usize, len: usize, kind: Kind) -> Tensor {
    let values: Vec<i64> = (0..len)
        .map(|index| i64::try_from((rank * 7 + index * 3) % 11).unwrap())
        .collect();
    Tensor::from_slice(&values).to_kind(kind)
}

fn values(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.flatten(0, -1).to_kind(Kind::Double)).unwrap()
}
