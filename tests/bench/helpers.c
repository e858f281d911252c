// SPDX-License-Identifier: GPL-2.0
/* An object cannot be part of two modules. */
#include "../../sys/ao.c"
#include "../../sys/helpers.c"
