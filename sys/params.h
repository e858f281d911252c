/* SPDX-License-Identifier: GPL-2.0 */
/* Parameters that are text; see exports.c. */
#ifndef _KCCM_SYS_PARAMS_H
#define _KCCM_SYS_PARAMS_H

const char *kccm_param_cluster(void);
const char *kccm_param_key(void);
const char *kccm_param_peer(unsigned int i);

#endif /* _KCCM_SYS_PARAMS_H */
