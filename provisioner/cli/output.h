/* SPDX-License-Identifier: Apache-2.0 */
/* Printing what the API answered: tables and lists for people, JSON for programs, names for scripts. */
#ifndef PLATTER_CLI_OUTPUT_H
#define PLATTER_CLI_OUTPUT_H

#include "provisioner/cli/command.h"

enum column_kind { COLUMN_TEXT, COLUMN_SIZE, COLUMN_BOOL, COLUMN_TIME, COLUMN_PROGRESS };

struct column {
    const char *header; /* ends at NULL */
    const char *member; /* "size", "error.message" or "layers.0.used": a path of members */
    enum column_kind kind;
};

/* A list: a table with one row each, a JSON array, or the `name_member` of each. */
void output_list(const struct cli *cli, const json_t *array, const struct column *columns, const char *name_member);

/* One object: a line for each column that it has, the JSON object, or its `name_member`. */
void output_object(const struct cli *cli, const json_t *object, const struct column *columns, const char *name_member);

/* The member at a dotted path, NULL if there is none. */
const json_t *output_member(const json_t *object, const char *path);

/* Text from elsewhere on a terminal: control characters become '?'. */
void output_text(FILE *stream, const char *text);

#endif
