/* SPDX-License-Identifier: Apache-2.0 */
#ifndef PLATTER_API_DAEMON_H
#define PLATTER_API_DAEMON_H

/* platterd, from its arguments to its exit code: 0 after a signal, 1 for an error, 2 for wrong usage. */
int daemon_main(int argc, char **argv);

#endif
