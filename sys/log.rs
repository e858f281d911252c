// SPDX-License-Identifier: GPL-2.0

//! Keeping others from filling the log.
//!
//! What strangers can cause and what peers can are counted apart, so that a scan of the port does not
//! hide what a peer does wrong.

use super::helpers;

/// Whether to log one more of what anybody on the network can cause: at most ten in five seconds,
/// and the kernel says how many were left out. Any context.
pub(crate) fn allowed() -> bool {
    // SAFETY: No requirements.
    unsafe { helpers::kccm_log_allowed() }
}

/// The same for what a peer causes, or whoever is where a peer is.
pub(crate) fn allowed_of_peer() -> bool {
    // SAFETY: No requirements.
    unsafe { helpers::kccm_log_allowed_of_peer() }
}
