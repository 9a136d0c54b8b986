// SPDX-License-Identifier: Apache-2.0
#include "oracle.h"

#include <stdlib.h>
#include <string.h>

#include "fatal.h"

/* ---- stamps: eight words, the second half as the first ---- */

void stamp_fill(uint8_t *to, uint64_t mark, uint64_t granule, uint64_t generation)
{
    uint64_t words[4] = {mark, granule, generation, dice_mix(mark ^ dice_mix(granule) ^ generation)};
    memcpy(to, words, sizeof(words));
    memcpy(to + sizeof(words), words, sizeof(words));
}

int64_t stamp_read(const uint8_t *from, uint64_t mark, uint64_t granule)
{
    uint64_t w[8];
    memcpy(w, from, sizeof(w));
    if (!(w[0] | w[1] | w[2] | w[3] | w[4] | w[5] | w[6] | w[7]))
        return -1;
    if (w[0] != w[4] || w[1] != w[5] || w[2] != w[6] || w[3] != w[7])
        return -2;
    if (w[0] != mark || w[1] != granule || w[3] != dice_mix(mark ^ dice_mix(granule) ^ w[2]))
        return -3;
    return (int64_t)w[2];
}

/* ---- floors ---- */

static const struct load *sorting;

static int by_end(const void *left, const void *right)
{
    uint64_t a = sorting->steps[*(const uint32_t *)left].ended, b = sorting->steps[*(const uint32_t *)right].ended;
    return (a > b) - (a < b);
}

void oracle_create(struct oracle *o, const struct load *load)
{
    uint32_t granules = SIZE_MOST / GRANULE;
    *o = (struct oracle){.load = load};
    o->floor = need(calloc(granules, sizeof(*o->floor)));
    o->zeroed = need(calloc(granules, sizeof(*o->zeroed)));
    for (uint32_t i = 0; i < granules && i < load->variant->below / GRANULE; i++)
        o->zeroed[i] = -1;
    o->size_least = o->size_most = load->variant->size;
    o->by_end = need(calloc(load->started + 1, sizeof(*o->by_end)));
    for (unsigned i = 0; i < load->started; i++)
        if (load->steps[i].ended)
            o->by_end[o->ended++] = i;
    sorting = load;
    qsort(o->by_end, o->ended, sizeof(*o->by_end), by_end);
}

void oracle_destroy(struct oracle *o)
{
    free(o->floor);
    free(o->zeroed);
    free(o->by_end);
    *o = (struct oracle){0};
}

static int32_t generation_of(const struct oracle *o, const struct step *step)
{
    return (int32_t)(step - o->load->steps) + 1;
}

void oracle_started(struct oracle *o, const struct step *step)
{
    int32_t generation = generation_of(o, step);
    if (step->op != IMAGE_DISCARD && step->op != IMAGE_WRITE_ZEROES)
        return;
    for (uint32_t i = step->first; i < step->first + step->count; i++)
        o->zeroed[i] = generation;
}

void oracle_succeeded(struct oracle *o, const struct step *step)
{
    int32_t generation = generation_of(o, step);
    if (step->result != 0 || (step->op != IMAGE_WRITE && step->op != IMAGE_WRITE_ZEROES))
        return;
    for (uint32_t i = step->first; i < step->first + step->count; i++)
        if (o->floor[i] < generation)
            o->floor[i] = generation;
}

void oracle_to(struct oracle *o, uint64_t moment)
{
    const struct load *load = o->load;
    for (; o->starts < load->started && load->steps[o->starts].started <= moment; o->starts++)
        oracle_started(o, &load->steps[o->starts]);
    /* What flushes promise first, then what they cover. */
    for (; o->looked < o->ended && load->steps[o->by_end[o->looked]].ended <= moment; o->looked++) {
        const struct step *step = &load->steps[o->by_end[o->looked]];
        if (step->op == IMAGE_FLUSH && step->result == 0 && step->started > o->promised)
            o->promised = step->started;
        if (step->fua)
            oracle_succeeded(o, step);
    }
    for (; o->covered < o->ended && load->steps[o->by_end[o->covered]].ended < o->promised; o->covered++)
        oracle_succeeded(o, &load->steps[o->by_end[o->covered]]);
    for (unsigned i = 0; i < load->resize_count; i++) {
        const struct resize *resize = &load->resizes[i];
        if (resize->started <= moment && resize->size > o->size_most)
            o->size_most = resize->size;
        if (resize->ended && resize->ended <= moment && resize->result == 0)
            o->size_least = resize->size;
    }
}

/* ---- the judgement ---- */

static const char *fault_of(const struct oracle *o, uint32_t granule, int32_t floor, int64_t found, uint64_t moment)
{
    const struct load *load = o->load;
    if (found == -1)
        return o->zeroed[granule] >= floor ? NULL : "lost: zeros";
    if (found == -2)
        return "torn";
    if (found == -3)
        return "foreign";
    if (found == 0 && granule >= load->variant->below / GRANULE)
        return "foreign: the parent's, beyond its end";
    if (found == 0)
        return floor ? "stale: the parent's" : NULL;
    if (found > load->started)
        return "from the future";
    const struct step *step = &load->steps[found - 1];
    if (step->op != IMAGE_WRITE || granule < step->first || granule >= step->first + step->count ||
        step->started > moment)
        return "never written here";
    return found >= floor ? NULL : "stale";
}

int oracle_judge(struct oracle *o, const uint8_t *content, uint32_t first, uint32_t count, uint64_t moment,
                 const int32_t *floor)
{
    floor = floor ? floor : o->floor + first;
    for (uint32_t i = 0; i < count; i++) {
        int64_t found = stamp_read(content + (size_t)i * GRANULE, o->load->stamp, first + i);
        const char *fault = fault_of(o, first + i, floor[i], found, moment);
        if (!fault)
            continue;
        (void)snprintf(o->message, sizeof(o->message),
                       "guest 0x%llx: %s (step %lld, at least %d is promised, zeros since %d)",
                       (unsigned long long)(first + i) * GRANULE, fault, (long long)found - 1, floor[i] - 1,
                       o->zeroed[first + i] - 1);
        return -1;
    }
    return 0;
}
