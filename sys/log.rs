// SPDX-License-Identifier: GPL-2.0

//! Keeping others from filling the log.

use super::helpers;

/// Whether to log one more of what anybody on the network can cause: at most ten in five seconds,
/// and the kernel says how many were left out. Any context.
pub(crate) fn allowed() -> bool {
    // SAFETY: No requirements.
    unsafe { helpers::kccm_log_allowed() }
}
