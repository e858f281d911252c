// SPDX-License-Identifier: GPL-2.0

//! A node belongs to a network namespace: two of them in one kernel, each in a namespace of its own,
//! with a virtual cable between them that can be cut.

use super::harness::*;
use super::net::Spaces;
use super::sys;
use crate::conn::tcp::Tcp;
use crate::conn::transport::Transport;
use crate::node::{
    Node,
    Running, //
};
use crate::sys::clock::Millis;
use crate::sys::net::Net;
use core::net::SocketAddr;
use kernel::prelude::*;

const TAG: u32 = 9;

/// After how long a silence a node is held dead, where that matters.
const DEAD_MS: Millis = 300 * SLOWNESS;

/// Two nodes that are connected, each in its namespace.
fn apart(dead_ms: Option<Millis>) -> Result<Cluster> {
    let mut plan = Plan::apart().here()?;
    if let Some(ms) = dead_ms {
        plan.limits.dead_ms = ms as u32;
        plan.limits.handshake_ms = ms as u32;
    }
    let cluster = Cluster::new(plan)?;
    for node in cluster.nodes() {
        register_echo(node)?;
    }
    all_talk(&cluster)?;
    Ok(cluster)
}

/// Cuts the two nodes off from each other, which they find out, and undoes that, which they find out
/// as well.
fn cut_and_mended(cut: &CStr, mend: &CStr) -> Result {
    let cluster = apart(Some(DEAD_MS))?;
    let (zero, one) = cluster.pair()?;
    for _ in 0..2 {
        sys::shell(cut)?;
        sees_down(&zero, 1)?;
        sees_down(&one, 0)?;
        // For as long as it lasts.
        let down = |node: &Node, peer| !node.peer(peer).is_some_and(|p| p.is_up());
        steadily(DEAD_MS, || down(&zero, 1) && down(&one, 0))?;
        sys::shell(mend)?;
        cluster.connected()?;
        all_talk(&cluster)?;
    }
    Ok(())
}

#[kunit_tests(kccm_netns)]
mod tests {
    use super::*;

    /// P10: a node is reached in its namespace, and nowhere else. It holds the namespace, and lets go
    /// of it when it stops.
    #[test]
    fn in_its_namespace_alone() -> Result {
        let before = sys::namespaces();
        let mut cluster = apart(None)?;
        check_eq!(sys::namespaces(), before + 2);
        // Not from here, where nobody knows the way.
        let from = SocketAddr::new(own_ip(0), 0);
        for id in [0, 1] {
            let link = Tcp::new(Net::current(), None)?.connect(&from, &cluster.addr(id));
            check_eq!(link.err(), Some(ENETUNREACH));
        }
        cluster.stop(1);
        sees_down(&*cluster.node(0)?, 1)?;
        cluster.start(1)?;
        register_echo(&*cluster.node(1)?)?;
        cluster.connected()?;
        all_talk(&cluster)?;
        drop(cluster);
        eventually(|| sys::namespaces() == before)
    }

    /// Two nodes at the same address and port, which are not the same.
    #[test]
    fn same_address_twice() -> Result {
        let spaces = Spaces::new().here()?;
        let mut plan = Plan::of(1);
        plan.ip = shared_ip;
        let cluster = Cluster::idle(plan)?;
        let start = |net| {
            let tcp = KBox::new(Tcp::new(net, None)?, GFP_KERNEL)?;
            Running::start_on(cluster.config(0)?, tcp)
        };
        let first = start(spaces.net(0)?).here()?;
        let second = start(spaces.net(1)?).here()?;
        check_eq!(start(spaces.net(0)?).err(), Some(EADDRINUSE));
        let (nowhere, at) = (SocketAddr::new(shared_ip(0), 0), cluster.addr(0));
        for id in [0, 1] {
            let link = Tcp::new(spaces.net(id)?, None)?
                .connect(&nowhere, &at)
                .here()?;
            eventually(|| link.status() == Ok(()))?;
            link.close(true);
        }
        drop(first);
        // The other is still there.
        let refused = Tcp::new(spaces.net(0)?, None)?.connect(&nowhere, &at);
        if let Ok(link) = refused {
            eventually(|| link.status() == Err(ECONNREFUSED))?;
        }
        let link = Tcp::new(spaces.net(1)?, None)?
            .connect(&nowhere, &at)
            .here()?;
        eventually(|| link.status() == Ok(()))?;
        link.close(true);
        drop(second);
        Ok(())
    }

    /// P11: the cable is pulled out at one end.
    #[test]
    fn link_is_down() -> Result {
        cut_and_mended(
            c"nsenter --net=/run/kccm-0/net ip link set kccm0 down",
            c"nsenter --net=/run/kccm-0/net ip link set kccm0 up",
        )
    }

    /// P11: and at the other.
    #[test]
    fn link_of_the_other_is_down() -> Result {
        cut_and_mended(
            c"nsenter --net=/run/kccm-1/net ip link set kccm1 down",
            c"nsenter --net=/run/kccm-1/net ip link set kccm1 up",
        )
    }

    /// P11: a node loses its address.
    #[test]
    fn address_is_gone() -> Result {
        cut_and_mended(
            c"nsenter --net=/run/kccm-0/net ip addr del 10.9.0.1/24 dev kccm0",
            c"nsenter --net=/run/kccm-0/net ip addr add 10.9.0.1/24 dev kccm0",
        )
    }

    /// P11: the cable loses what goes one way: who is not heard is dead, and both find out.
    #[test]
    fn cut_one_way() -> Result {
        cut_and_mended(
            // To a device that is not there. What arp returns says nothing.
            c"nsenter --net=/run/kccm-1/net arp -s 10.9.0.1 02:00:00:00:00:99; true",
            c"nsenter --net=/run/kccm-1/net arp -d 10.9.0.1",
        )
    }

    /// P11: a cut that is shorter than `dead_ms` is not noticed, and nothing is lost in it.
    #[test]
    fn short_cut() -> Result {
        let cluster = apart(None)?;
        let (zero, one) = cluster.pair()?;
        sys::shell(c"nsenter --net=/run/kccm-1/net ip link set kccm1 down")?;
        for number in 0..10u64 {
            send(&zero, &one, TAG, &number.to_le_bytes())?;
            send(&one, &zero, TAG, &number.to_le_bytes())?;
        }
        let theirs = zero.clone();
        let caller = spawn(move || call(&theirs, 1, ECHO))?;
        caller.wait_asleep()?;
        steadily(300, || !caller.is_done() && one.endpoint.waiting().0 == 0)?;
        sys::shell(c"nsenter --net=/run/kccm-1/net ip link set kccm1 up")?;
        for number in 0..10u64 {
            expect(&one, &zero, TAG, &number.to_le_bytes())?;
            expect(&zero, &one, TAG, &number.to_le_bytes())?;
        }
        check_eq!(caller.join()?, Ok(0));
        check_eq!((epoch(&zero, 1), epoch(&one, 0)), (1, 1));
        Ok(())
    }
}
