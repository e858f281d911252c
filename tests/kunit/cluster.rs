// SPDX-License-Identifier: GPL-2.0

//! Forming the fully connected state.

use super::harness::*;
use super::net::{
    Memory,
    Trap, //
};
use super::sys;
use crate::config::NodeId;
use crate::conn::state::{
    Role,
    State, //
};
use crate::sys::wait::Timeout;
use kernel::prelude::*;

/// Starts a cluster, and checks that every two nodes share exactly one connection, which the lower
/// one has made.
pub(super) fn fully_connected(plan: Plan) -> Result {
    let before = sys::tcp_sockets();
    let cluster = Cluster::new(plan)?;
    let count = cluster.nodes().count();
    for node in cluster.nodes() {
        check_eq!(node.peers().len(), count - 1);
        for peer in node.peers() {
            let lower = node.id() < peer.id;
            check_eq!(peer.role == Role::Connect, lower);
            // Only who connects makes attempts; more than one if it was early.
            check_eq!(peer.stats.attempts.get() > 0, lower);
            check_eq!(peer.stats.reconnects.get(), 0);
            check_eq!(peer.snapshot().state, State::Up);
        }
        register_echo(node)?;
    }
    // A socket for each port, and two for each pair.
    eventually(|| sys::tcp_sockets() == before + count + count * (count - 1))?;
    all_talk(&cluster)
}

#[kunit_tests(kccm_cluster)]
mod tests {
    use super::*;

    /// P10: every pair of nodes shares one connection, the lower id connecting.
    #[test]
    fn two_nodes() -> Result {
        fully_connected(Plan::of(2))
    }

    /// P10
    #[test]
    fn five_nodes() -> Result {
        fully_connected(Plan::of(5))
    }

    /// P10
    #[test]
    fn sixteen_nodes() -> Result {
        fully_connected(Plan::of(16))
    }

    /// P3, P10
    #[test]
    fn over_ipv6() -> Result {
        let mut plan = Plan::of(3);
        plan.ip = shared_ip6;
        fully_connected(plan)
    }

    /// P3, P10: a node at an IPv6 address among others at IPv4 addresses.
    #[test]
    fn over_both() -> Result {
        let mut plan = Plan::of(4);
        plan.ip = |id| {
            if id % 2 == 0 {
                own_ip(id)
            } else {
                shared_ip6(id)
            }
        };
        fully_connected(plan)
    }

    /// P10: connections come from where the node lives.
    #[test]
    fn each_node_at_its_own_address() -> Result {
        let mut plan = Plan::of(4);
        plan.ip = own_ip;
        fully_connected(plan)
    }

    /// P4, P10
    #[test]
    fn with_three_listeners_each() -> Result {
        let mut plan = Plan::of(5);
        plan.limits.listeners = 3;
        fully_connected(plan)
    }

    /// P3: nothing above the transport knows of TCP, nor in what pieces bytes arrive.
    #[test]
    fn over_something_else_than_tcp() -> Result {
        let sockets = sys::tcp_sockets();
        let memory = Memory::new(7)?;
        let mut cluster = Cluster::new(Plan::in_memory(3, &memory))?;
        check_eq!(sys::tcp_sockets(), sockets);
        for node in cluster.nodes() {
            register_echo(node)?;
        }
        all_talk(&cluster)?;
        let node = cluster.node(0)?;
        // Longer than what is on its way at once.
        let sent = pattern(50_000, 1)?;
        node.send(2, 1, &sent, SOON).here()?;
        let mut received = pattern(sent.len(), 2)?;
        receive(&*cluster.node(2)?, None, Some(1), &mut received, SOON).here()?;
        check!(sent[..] == received[..]);
        // It recovers, too (P11).
        cluster.stop(2);
        sees_down(&node, 2)?;
        cluster.start(2)?;
        register_echo(&*cluster.node(2)?)?;
        cluster.connected()?;
        all_talk(&cluster)?;
        check_eq!(memory.links(), 6);
        drop((node, cluster));
        check_eq!(memory.links(), 0);
        Ok(())
    }

    /// P10: all pairs at once: a node that does not answer does not keep others from connecting.
    #[test]
    fn all_pairs_at_once() -> Result {
        let mut cluster = Cluster::idle(Plan::of(4))?;
        let trap = Trap::set(cluster.addr(1))?;
        for id in [0, 2, 3] {
            cluster.start(id)?;
        }
        let node = cluster.node(0)?;
        // Node 1 comes first in order, and accepts, but says nothing.
        let caught = trap.catch()?;
        for id in [2, 3] {
            node.wait_up(Some(id), SOON).here()?;
        }
        let silent = node.peer(1).ok_or(EINVAL)?;
        check!(matches!(silent.snapshot().state, State::Greeting { .. }));
        check_eq!(silent.stats.attempts.get(), 1);
        drop((caught, trap));
        cluster.start(1)?;
        cluster.connected()
    }

    /// A cluster of one is connected.
    #[test]
    fn one_node() -> Result {
        let cluster = Cluster::of(1)?;
        cluster.node(0)?.wait_up(None, Timeout::NoWait)
    }

    #[test]
    fn waiting_for_peers() -> Result {
        let mut cluster = Cluster::idle(Plan::of(3))?;
        cluster.start(0)?;
        let node = cluster.node(0)?;
        let wait = |id: Option<NodeId>, timeout| node.wait_up(id, timeout).err();
        check_eq!(wait(None, Timeout::NoWait), Some(EAGAIN));
        check_eq!(wait(Some(2), Timeout::After(20)), Some(ETIMEDOUT));
        check_eq!(wait(Some(3), Timeout::NoWait), Some(EINVAL));
        check_eq!(wait(Some(0), Timeout::NoWait), None);
        let theirs = node.clone();
        let waiter = spawn(move || theirs.wait_up(None, SOON))?;
        cluster.start(2)?;
        check_eq!(wait(Some(2), SOON), None);
        check_eq!(wait(Some(1), Timeout::NoWait), Some(EAGAIN));
        check!(!waiter.is_done());
        cluster.start(1)?;
        waiter.join()?.here()
    }

    /// An address that is taken: an error, and nothing is left behind.
    #[test]
    fn port_is_taken() -> Result {
        let mut cluster = Cluster::idle(Plan::of(2))?;
        let sockets = sys::tcp_sockets();
        let trap = Trap::set(cluster.addr(1))?;
        check_eq!(cluster.start(1).err(), Some(EADDRINUSE));
        drop(trap);
        check_eq!(sys::tcp_sockets(), sockets);
        cluster.start(1)
    }
}
