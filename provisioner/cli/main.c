// SPDX-License-Identifier: Apache-2.0
#include "provisioner/cli/command.h"

int main(int argc, char **argv)
{
    return cli_main(argc, argv);
}
