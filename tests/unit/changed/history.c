// SPDX-License-Identifier: Apache-2.0
#include "history.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/checked.h"

#define OPERATIONS 25u

unsigned history_random(struct history *h, unsigned below)
{
    h->random = h->random * 1103515245u + 12345u;
    return (h->random >> 8) % below;
}

unsigned history_seed(void)
{
    const char *given = getenv("PLATTER_TEST_SEED");
    unsigned seed = 0;
    if (given)
        seed = (unsigned)strtoul(given, NULL, 10);
    else
        assert_int_equal(getentropy(&seed, sizeof(seed)), 0);
    print_message("PLATTER_TEST_SEED=%u\n", seed);
    return seed;
}

static void touch(struct history *h, unsigned layer, uint64_t offset, uint64_t length)
{
    uint64_t first = align_down(offset, h->granule) / HISTORY_GRANULE;
    uint64_t end = MIN(align_up(offset + length, h->granule), HISTORY_SIZE) / HISTORY_GRANULE;
    memset(h->touched[layer] + first, 1, end - first);
}

/* One request of any alignment. What a discard leaves is taken from the image. */
static void operate(struct history *h, struct client *client, unsigned layer, uint8_t *buffer)
{
    uint64_t size = h->size[layer];
    uint64_t offset = history_random(h, (unsigned)(size / 512)) * UINT64_C(512);
    uint64_t length = (1 + history_random(h, history_random(h, 4) ? 64 : 1024)) * UINT64_C(512);
    uint8_t *content = h->content[layer];
    length = MIN(length, size - offset);
    touch(h, layer, offset, length);
    switch (history_random(h, 5)) {
    case 0:
        assert_int_equal(client_op(client, IMAGE_WRITE_ZEROES, offset, NULL, length), 0);
        memset(content + offset, 0, length);
        break;
    case 1:
        assert_int_equal(client_op(client, IMAGE_DISCARD, offset, NULL, length), 0);
        assert_int_equal(client_op(client, IMAGE_READ, offset, content + offset, length), 0);
        break;
    default:
        memset(buffer, (int)history_random(h, 4) ? 1 + (int)history_random(h, 255) : 0, length);
        assert_int_equal(client_op(client, IMAGE_WRITE, offset, buffer, length), 0);
        memcpy(content + offset, buffer, length);
        break;
    }
}

static void live_through(struct history *h, unsigned layer)
{
    static uint8_t buffer[1 << 20];
    struct client client;
    layer_create(h->kind, layer, h->size[layer]);
    struct image *image = chain_open(h->kind, layer, false);
    client_open(&client, image);
    unsigned operations = history_random(h, OPERATIONS); /* none, too */
    unsigned grow_at = history_random(h, 2) ? history_random(h, OPERATIONS) : OPERATIONS;
    for (unsigned i = 0; i < operations; i++) {
        uint64_t size = h->size[layer] + (1 + history_random(h, 300)) * UINT64_C(1024);
        if (i == grow_at && layer && size <= HISTORY_SIZE) {
            client_close(&client); /* our loop would not run meanwhile */
            assert_int_equal(image_resize(image, size, NULL), 0);
            client_open(&client, image);
            h->size[layer] = size;
        }
        operate(h, &client, layer, buffer);
    }
    client_close(&client);
    assert_int_equal(image_close(image, NULL), 0);
}

struct history *history_create(const struct kind *kind, unsigned seed)
{
    struct history *h = calloc(1, sizeof(*h));
    assert_non_null(h);
    h->kind = kind;
    h->random = seed;
    h->granule = kind->extended_l2 ? kind->cluster_size / 32 : kind->cluster_size;
    for (unsigned i = 0; i < HISTORY_LAYERS; i++) {
        h->content[i] = calloc(1, HISTORY_SIZE);
        assert_non_null(h->content[i]);
        if (i)
            memcpy(h->content[i], h->content[i - 1], HISTORY_SIZE);
        h->size[i] = i ? h->size[i - 1] : UINT64_C(1) << 20;
        live_through(h, i);
    }
    return h;
}

struct history *history_destroy(struct history *h)
{
    for (unsigned i = 0; i < HISTORY_LAYERS; i++)
        free(h->content[i]);
    free(h);
    return NULL;
}
