// SPDX-License-Identifier: Apache-2.0
#include "provisioner/cli/output.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/checked.h"
#include "common/cleanup.h"
#include "common/size.h"

#define CELL_MAX 512
#define COLUMNS_MAX 16

const json_t *output_member(const json_t *object, const char *path)
{
    char part[64];
    while (object) {
        size_t length = strcspn(path, ".");
        (void)snprintf(part, sizeof(part), "%.*s", (int)length, path);
        object =
            json_is_array(object) ? json_array_get(object, strtoul(part, NULL, 10)) : json_object_get(object, part);
        if (!path[length])
            return object;
        path += length + 1;
    }
    return NULL;
}

static void make_printable(char *text)
{
    for (; *text; text++) {
        if ((unsigned char)*text < ' ' || *text == 0x7f)
            *text = '?';
    }
}

void output_text(FILE *stream, const char *text)
{
    for (; *text; text++)
        (void)fputc((unsigned char)*text < ' ' || *text == 0x7f ? '?' : *text, stream);
}

static void format_time(const json_t *value, char *cell)
{
    time_t seconds = (time_t)json_number_value(value);
    struct tm tm;
    if (!localtime_r(&seconds, &tm) || strftime(cell, CELL_MAX, "%Y-%m-%d %H:%M:%S", &tm) == 0)
        (void)snprintf(cell, CELL_MAX, "-");
}

static void format_progress(const json_t *value, char *cell)
{
    double done = json_number_value(json_object_get(value, "done"));
    double total = json_number_value(json_object_get(value, "total"));
    if (total > 0)
        (void)snprintf(cell, CELL_MAX, "%d%%", (int)(100 * done / total));
    else
        (void)snprintf(cell, CELL_MAX, "-");
}

static void format_plain(const json_t *value, char *cell)
{
    if (json_is_string(value)) {
        const char *text = json_string_value(value);
        (void)snprintf(cell, CELL_MAX, "%s", text[0] ? text : "-");
    } else if (json_is_boolean(value)) {
        (void)snprintf(cell, CELL_MAX, "%s", json_is_true(value) ? "yes" : "no");
    } else if (json_is_integer(value)) {
        (void)snprintf(cell, CELL_MAX, "%lld", (long long)json_integer_value(value));
    } else if (json_is_real(value)) {
        (void)snprintf(cell, CELL_MAX, "%g", json_real_value(value));
    } else if (value && !json_is_null(value)) {
        CLEANUP_FREE char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
        (void)snprintf(cell, CELL_MAX, "%s", text ? text : "-");
    } else {
        (void)snprintf(cell, CELL_MAX, "-");
    }
}

static void format_cell(const json_t *object, const struct column *column, char cell[CELL_MAX])
{
    const json_t *value = output_member(object, column->member);
    if (column->kind == COLUMN_SIZE && json_is_integer(value) && json_integer_value(value) >= 0) {
        char size[SIZE_TEXT_MAX];
        (void)snprintf(cell, CELL_MAX, "%s", size_format((uint64_t)json_integer_value(value), size));
    } else if (column->kind == COLUMN_TIME && json_is_number(value)) {
        format_time(value, cell);
    } else if (column->kind == COLUMN_PROGRESS) {
        format_progress(value, cell);
    } else {
        format_plain(value, cell);
    }
    make_printable(cell);
}

static void print_cell(const char *cell, int width, const struct column *column, bool last)
{
    if (column->kind == COLUMN_SIZE)
        (void)printf("%*s%s", width, cell, last ? "\n" : "  ");
    else if (last)
        (void)printf("%s\n", cell);
    else
        (void)printf("%-*s  ", width, cell);
}

static void print_table(const json_t *array, const struct column *columns)
{
    int width[COLUMNS_MAX] = {0};
    char cell[CELL_MAX];
    size_t count = 0, index;
    json_t *row;
    for (; count < COLUMNS_MAX && columns[count].header; count++)
        width[count] = (int)strlen(columns[count].header);
    json_array_foreach (array, index, row) {
        for (size_t i = 0; i < count; i++) {
            format_cell(row, &columns[i], cell);
            width[i] = MAX(width[i], (int)strlen(cell));
        }
    }
    for (size_t i = 0; i < count; i++)
        print_cell(columns[i].header, width[i], &columns[i], i + 1 == count);
    json_array_foreach (array, index, row) {
        for (size_t i = 0; i < count; i++) {
            format_cell(row, &columns[i], cell);
            print_cell(cell, width[i], &columns[i], i + 1 == count);
        }
    }
}

static void print_json(const json_t *value)
{
    CLEANUP_FREE char *text = json_dumps(value, JSON_INDENT(2) | JSON_ENCODE_ANY);
    if (text)
        (void)puts(text);
}

static void print_name(const json_t *object, const char *name_member)
{
    const char *name = json_string_value(json_object_get(object, name_member));
    if (name) {
        output_text(stdout, name);
        (void)putchar('\n');
    }
}

void output_list(const struct cli *cli, const json_t *array, const struct column *columns, const char *name_member)
{
    size_t index;
    json_t *object = NULL;
    switch (cli->output) {
    case OUTPUT_JSON:
        print_json(array);
        break;
    case OUTPUT_NAME:
        json_array_foreach (array, index, object) {
            print_name(object, name_member);
        }
        break;
    case OUTPUT_TABLE:
        print_table(array, columns);
        break;
    }
}

static void print_details(const json_t *object, const struct column *columns)
{
    int width = 0;
    for (const struct column *column = columns; column->header; column++)
        width = MAX(width, (int)strlen(column->header));
    for (const struct column *column = columns; column->header; column++) {
        const json_t *value = output_member(object, column->member);
        if (!value || json_is_null(value) || (json_is_string(value) && json_string_length(value) == 0))
            continue;
        char cell[CELL_MAX];
        format_cell(object, column, cell);
        (void)printf("%-*s  %s\n", width, column->header, cell);
    }
}

void output_object(const struct cli *cli, const json_t *object, const struct column *columns, const char *name_member)
{
    switch (cli->output) {
    case OUTPUT_JSON:
        print_json(object);
        break;
    case OUTPUT_NAME:
        print_name(object, name_member);
        break;
    case OUTPUT_TABLE:
        print_details(object, columns);
        break;
    }
}
