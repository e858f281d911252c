// SPDX-License-Identifier: GPL-2.0

//! The allocation policy: whatever KCCM asks of a network, it asks from where nothing that is allocated
//! waits for I/O, and so it calls handlers and subscribers.

use super::harness::*;
use super::net::Operation;
use super::sys;
use crate::config::NodeId;
use crate::events::Event;
use crate::rcall::handlers::Class;
use crate::sys::clock::Millis;
use crate::sys::noio::Scope;
use kernel::prelude::*;
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};
use kernel::sync::Arc;

const TAG: u32 = 1;
const SHORT: u32 = 2;
const LONG: u32 = 3;
const DEAD_MS: Millis = 300 * SLOWNESS;

/// Checks what the nodes have asked of their networks, and that they have asked for everything.
fn never_exposed(cluster: &Cluster) -> Result {
    let gates = cluster.gates()?;
    for operation in Operation::ALL {
        let used: usize = gates.iter().map(|gate| gate.used(operation)).sum();
        let exposed: usize = gates.iter().map(|gate| gate.exposed(operation)).sum();
        check_eq!((operation, used > 0), (operation, true));
        check_eq!((operation, exposed), (operation, 0));
    }
    Ok(())
}

#[kunit_tests(kccm_noio)]
mod tests {
    use super::*;

    /// A scope is one, and the outermost counts.
    #[test]
    fn scopes_nest() -> Result {
        check!(!sys::noio());
        let outer = Scope::enter();
        let inner = Scope::enter();
        check!(sys::noio());
        drop(inner);
        check!(sys::noio());
        drop(outer);
        check!(!sys::noio());
        Ok(())
    }

    /// Forming a cluster, messages, calls, silence, reconnecting, going: in each, everything is done
    /// within the scope. The callers' part of it is that of the exported functions, as here.
    #[test]
    fn all_operations() -> Result {
        let noio = Scope::enter();
        let mut plan = Plan::gated(3)?;
        plan.limits.dead_ms = DEAD_MS as u32;
        plan.limits.handshake_ms = DEAD_MS as u32;
        let mut cluster = Cluster::new(plan)?;
        let (zero, one, _) = cluster.trio()?;
        for node in cluster.nodes() {
            register_echo(node)?;
        }
        all_talk(&cluster)?;
        // More than fits into a socket: the listener sends what is left.
        let big = pattern(4 << 20, 1)?;
        let mut received = pattern(big.len(), 2)?;
        zero.send(1, TAG, &big, SOON).here()?;
        receive(&one, None, Some(TAG), &mut received, SOON).here()?;
        check!(big[..] == received[..]);
        // Node 1 falls silent, is given up, and found again.
        let gate = cluster.gate(1)?;
        gate.set_mute(true);
        gate.set_deaf(true);
        sees_down(&zero, 1)?;
        gate.set_mute(false);
        gate.set_deaf(false);
        cluster.connected()?;
        // What sysfs does for the administrator.
        let peer = zero.peer(1).ok_or(EINVAL)?;
        zero.disconnect(peer, true);
        cluster.connected()?;
        zero.set_admin_down(peer, true);
        sees_down(&one, 0)?;
        zero.set_admin_down(peer, false);
        cluster.connected()?;
        drop(noio);
        // Threads that are not within a scope of their own may stop a node.
        drop((zero, one));
        for id in 0..3 {
            cluster.stop(id);
        }
        never_exposed(&cluster)
    }

    /// Handlers of either class, and subscribers, are called within the scope.
    #[test]
    fn callbacks() -> Result {
        let cluster = Cluster::of(2)?;
        let (zero, one) = cluster.pair()?;
        for (func, class) in [(SHORT, Class::Short), (LONG, Class::Long)] {
            register(&one, func, class, |_| i32::from(sys::noio()))?;
            check_eq!(call(&zero, 1, func), Ok(1));
        }
        // How often inside, and outside.
        let told = Arc::new([const { Atomic::new(0u32) }; 2], GFP_KERNEL)?;
        let tell = told.clone();
        let subscriber = move |_: NodeId, _: Event, _: u64| {
            tell[usize::from(!sys::noio())].fetch_add(1, Relaxed);
        };
        let handle = zero.subscribe(KBox::new(subscriber, GFP_KERNEL)?)?;
        let seen = || (told[0].load(Relaxed), told[1].load(Relaxed));
        eventually(|| seen() != (0, 0))?;
        check_eq!(seen(), (1, 0));
        zero.unsubscribe(handle)
    }
}
