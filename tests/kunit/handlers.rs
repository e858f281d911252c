// SPDX-License-Identifier: GPL-2.0

//! Registering functions, and taking them back.

use super::harness::*;
use super::sys;
use crate::node::Node;
use crate::rcall::handlers::Class;
use crate::sys::owner::Owner;
use kernel::prelude::*;
use kernel::sync::Arc;

const FUNC: u32 = 1;

/// A thread that takes a handler back.
fn unregister(node: &Arc<Node>) -> Result<Job<Result>> {
    let theirs = node.clone();
    spawn(move || theirs.unregister(FUNC))
}

/// Registers a long handler that is held back, and has it called so many times.
fn held_calls(cluster: &Cluster, owner: Owner, latch: &Latch, calls: u32) -> Result {
    let (caller, node) = cluster.pair()?;
    let barrier = latch.barrier();
    node.register(handler(FUNC, Class::Long, owner, move |_| {
        barrier.pass();
        0
    })?)?;
    for _ in 0..calls {
        caller.rcall(1, FUNC, &[], SOON).here()?;
    }
    Ok(())
}

#[kunit_tests(kccm_handlers)]
mod tests {
    use super::*;

    #[test]
    fn number_is_taken() -> Result {
        let cluster = Cluster::of(2)?;
        let (caller, node) = cluster.pair()?;
        register(&node, FUNC, Class::Short, |_| 1)?;
        let second = handler(FUNC, Class::Long, Owner::NONE, |_| 2)?;
        check_eq!(node.register(second), Err(EEXIST));
        check_eq!(node.handlers.count(), 1);
        check_eq!(call(&caller, 1, FUNC), Ok(1));
        node.unregister(FUNC)?;
        check_eq!(node.unregister(FUNC), Err(ENOENT));
        check_eq!(call(&caller, 1, FUNC), Err(EOPNOTSUPP));
        register(&node, FUNC, Class::Long, |_| 2)?;
        check_eq!(call(&caller, 1, FUNC), Ok(2));
        Ok(())
    }

    #[test]
    fn arguments_that_no_call_could_carry() -> Result {
        let mut plan = Plan::of(1);
        plan.limits.max_rcall = 1000;
        let cluster = Cluster::new(plan)?;
        let node = cluster.node(0)?;
        for (max_args, expected) in [(1001, Err(EINVAL)), (1000, Ok(()))] {
            let mut handler = handler(FUNC, Class::Short, Owner::NONE, |_| 0)?;
            handler.max_args = max_args;
            check_eq!(node.register(handler), expected);
        }
        Ok(())
    }

    /// Who is slow is warned about once, also when several listeners find out at the same time.
    #[test]
    fn one_warning() -> Result {
        const HANDLERS: u32 = 1000;
        const LISTENERS: u32 = 4;
        let cluster = Cluster::of(1)?;
        let node = cluster.node(0)?;
        for func in 0..HANDLERS {
            register(&node, func, Class::Short, |_| 0)?;
        }
        let latch = Latch::new()?;
        let mut listeners = KVec::new();
        for _ in 0..LISTENERS {
            let (theirs, barrier) = (node.clone(), latch.barrier());
            let listener = spawn(move || {
                barrier.pass();
                let slow = |&func: &u32| theirs.handlers.begin(func, 0).is_ok_and(|r| r.warn_now());
                (0..HANDLERS).filter(slow).count()
            })?;
            listeners.push(listener, GFP_KERNEL)?;
        }
        latch.wait_held(LISTENERS)?;
        latch.open();
        let mut warnings = 0;
        for listener in listeners {
            warnings += listener.join()?;
        }
        check_eq!(warnings, HANDLERS as usize);
        Ok(())
    }

    /// Unregistering waits for those that run, and for those that are queued, which run first.
    #[test]
    fn unregistering_waits() -> Result {
        let mut plan = Plan::of(2);
        plan.limits.max_long_handlers = 1;
        let cluster = Cluster::new(plan)?;
        let (caller, node) = cluster.pair()?;
        let latch = Latch::new()?;
        held_calls(&cluster, Owner::NONE, &latch, 1)?;
        latch.wait_held(1)?;
        let theirs = caller.clone();
        let queued = spawn(move || call(&theirs, 1, FUNC))?;
        eventually(|| node.pool.counts().0 == 1)?;
        let unregistering = unregister(&node)?;
        // Nobody can call it any more, though it has not gone.
        eventually(|| call(&caller, 1, FUNC) == Err(EOPNOTSUPP))?;
        steadily(30, || !unregistering.is_done())?;
        latch.open();
        check_eq!(unregistering.join()?, Ok(()));
        check_eq!(latch.held(), 0);
        // The queued one has been run: its reply was on its way before.
        check_eq!(queued.join()?, Ok(0));
        Ok(())
    }

    /// The same for a short one, which the listener runs.
    #[test]
    fn unregistering_waits_for_the_listener() -> Result {
        let cluster = Cluster::of(2)?;
        let (caller, node) = cluster.pair()?;
        let latch = Latch::new()?;
        register_latched(&node, FUNC, Class::Short, &latch)?;
        caller.rcall(1, FUNC, &[], SOON).here()?;
        latch.wait_held(1)?;
        let unregistering = unregister(&node)?;
        eventually(|| node.handlers.count() == 0)?;
        steadily(30, || !unregistering.is_done())?;
        latch.open();
        check_eq!(unregistering.join()?, Ok(()));
        check_eq!(latch.held(), 0);
        Ok(())
    }

    /// A handler that unregistered itself would wait for itself.
    #[test]
    fn unregistering_from_inside() -> Result {
        let cluster = Cluster::of(2)?;
        let (caller, node) = cluster.pair()?;
        for class in [Class::Short, Class::Long, Class::Softirq] {
            let theirs = node.clone();
            register(&node, FUNC, class, move |_| {
                let result = theirs.unregister(FUNC);
                result.map_or_else(|e| e.to_errno(), |()| 0)
            })?;
            let result = caller.rcall_sync(1, FUNC, &[], &mut [], SOON);
            node.unregister(FUNC)?;
            let status = result.err().map(|failure| failure.status);
            check_eq!(status, Some(EDEADLK.to_errno()));
        }
        Ok(())
    }

    /// A module is pinned while a call of its handler runs, or is queued, and only then.
    #[test]
    fn module_is_pinned() -> Result {
        let mut plan = Plan::of(2);
        plan.limits.max_long_handlers = 1;
        let cluster = Cluster::new(plan)?;
        let node = cluster.node(1)?;
        let latch = Latch::new()?;
        let before = sys::module_refs();
        held_calls(&cluster, sys::this_module(), &latch, 3)?;
        latch.wait_held(1)?;
        eventually(|| node.pool.counts().0 == 2)?;
        check_eq!(sys::module_refs(), before + 3);
        latch.open();
        eventually(|| sys::module_refs() == before)?;
        node.unregister(FUNC)?;
        check_eq!(sys::module_refs(), before);
        Ok(())
    }

    /// A handler whose module is being unloaded is as good as gone.
    #[test]
    fn module_is_leaving() -> Result {
        let module = sys::Leaving::new()?;
        let cluster = Cluster::of(2)?;
        let (caller, node) = cluster.pair()?;
        for class in [Class::Short, Class::Long] {
            node.register(handler(FUNC, class, module.owner(), |_| 0)?)?;
            check_eq!(call(&caller, 1, FUNC), Err(EOPNOTSUPP));
            node.unregister(FUNC)?;
            check_eq!(module.refs(), 1);
        }
        Ok(())
    }
}
