// SPDX-License-Identifier: Apache-2.0
/*
 * `platter __complete WORDS...`: what may stand in the place of the last word, one candidate a line, nothing when file
 * names shall be offered. Names of volumes, pools, attachments and jobs come from platterd; when it does not answer
 * quickly, there are none.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "provisioner/cli/command.h"
#include "provisioner/cli/output.h"

#define ASK_TIMEOUT_MS 1000

static void offer(const char *candidate, size_t length, const char *prefix)
{
    size_t want = strlen(prefix);
    if (length >= want && strncmp(candidate, prefix, want) == 0)
        (void)printf("%.*s\n", (int)length, candidate);
}

static void offer_choices(const char *choices, const char *prefix)
{
    while (choices && *choices) {
        size_t length = strcspn(choices, "|");
        offer(choices, length, prefix);
        choices += length + (choices[length] == '|');
    }
}

static void offer_from_api(const char *socket, const char *path, const char *list, const char *member,
                           const char *prefix)
{
    struct client *client = NULL;
    struct client_reply reply = {0};
    if (client_create(socket, &client, NULL) < 0)
        return;
    if (client_request(client, "GET", path, NULL, ASK_TIMEOUT_MS, &reply, NULL) == 0) {
        size_t index;
        json_t *object;
        json_array_foreach (json_object_get(reply.body, list), index, object) {
            const char *name = json_string_value(json_object_get(object, member));
            if (name)
                offer(name, strlen(name), prefix);
        }
        client_reply_clear(&reply);
    }
    client_destroy(client);
}

static void offer_value(const struct value_spec *spec, const char *socket, const char *prefix)
{
    switch (spec->kind) {
    case VALUE_CHOICE:
        offer_choices(spec->choices, prefix);
        break;
    case VALUE_SNAPSHOT:
        offer_from_api(socket, "/v1/snapshots?limit=1000", "snapshots", "name", prefix);
        break;
    case VALUE_POOL:
        offer_from_api(socket, "/v1/pools", "pools", "name", prefix);
        break;
    case VALUE_VOLUME:
        offer_from_api(socket, "/v1/volumes", "volumes", "name", prefix);
        break;
    case VALUE_ATTACHMENT:
        offer_from_api(socket, "/v1/attachments", "attachments", "id", prefix);
        break;
    case VALUE_JOB:
        offer_from_api(socket, "/v1/jobs", "jobs", "id", prefix);
        break;
    default:
        break;
    }
}

/* Nouns when `noun` is NULL, else the verbs of that noun. */
static void offer_commands(const char *noun, const char *prefix)
{
    const char *last = "";
    for (const struct command *const *group = command_groups; *group; group++) {
        for (const struct command *command = *group; command->noun; command++) {
            const char *word = noun ? command->verb : command->noun;
            if ((noun && strcmp(command->noun, noun) != 0) || !word || strcmp(word, last) == 0)
                continue;
            offer(word, strlen(word), prefix);
            last = word;
        }
    }
}

static const struct value_spec *find_option(const struct value_spec *specs, const char *word)
{
    if (strcmp(word, "-o") == 0)
        word = "--output";
    if (strncmp(word, "--", 2) != 0)
        return NULL;
    for (; specs && specs->name; specs++) {
        if (strcmp(specs->name, word + 2) == 0)
            return specs;
    }
    return NULL;
}

static void offer_options(const struct value_spec *specs, const char *prefix)
{
    char word[64];
    for (; specs && specs->name; specs++) {
        (void)snprintf(word, sizeof(word), "--%s", specs->name);
        offer(word, strlen(word), prefix);
    }
}

/* What the words before the last one have settled. */
struct context {
    const char *noun;
    const struct command *command;
    const struct value_spec *pending; /* the option whose value comes next */
    const char *socket;
    int arguments;
};

static void read_word(struct context *context, const char *word)
{
    if (context->pending) {
        if (strcmp(word, "=") == 0) /* bash splits --name=value there */
            return;
        if (strcmp(context->pending->name, "socket") == 0)
            context->socket = word;
        context->pending = NULL;
    } else if (word[0] == '-') {
        const struct value_spec *spec = find_option(cli_common_options, word);
        if (!spec && context->command)
            spec = find_option(context->command->options, word);
        context->pending = spec && spec->kind != VALUE_FLAG ? spec : NULL;
    } else if (context->command) {
        context->arguments++;
    } else if (context->noun) {
        context->command = command_find(context->noun, word);
    } else {
        context->noun = word;
        context->command = command_find(word, NULL);
    }
}

int completion_candidates(int count, char **words)
{
    const char *prefix = count > 0 ? words[count - 1] : "";
    const char *socket = getenv("PLATTER_SOCKET");
    struct context context = {.socket = socket && socket[0] ? socket : CLIENT_SOCKET_DEFAULT};
    for (int i = 0; i + 1 < count; i++)
        read_word(&context, words[i]);
    if (context.pending) {
        offer_value(context.pending, context.socket, strcmp(prefix, "=") == 0 ? "" : prefix);
    } else if (prefix[0] == '-') {
        offer_options(context.command ? context.command->options : NULL, prefix);
        offer_options(cli_common_options, prefix);
    } else if (!context.noun) {
        offer_commands(NULL, prefix);
    } else if (!context.command) {
        offer_commands(context.noun, prefix);
    } else if (context.arguments > 0 && context.command->arguments[0].repeat) {
        offer_value(&context.command->arguments[0], context.socket, prefix);
    } else if (context.arguments < COMMAND_ARGUMENTS_MAX && context.command->arguments[context.arguments].name) {
        offer_value(&context.command->arguments[context.arguments], context.socket, prefix);
    }
    return EXIT_CODE_OK;
}
