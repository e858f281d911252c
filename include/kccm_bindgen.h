/* SPDX-License-Identifier: GPL-2.0 */
/* What bindgen reads for api.rs. */
#include <kccm.h>
#include "../sys/params.h"
