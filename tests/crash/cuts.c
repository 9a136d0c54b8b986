// SPDX-License-Identifier: Apache-2.0
#include "cuts.h"

void cuts_begin(struct cuts *c, struct load *load)
{
    *c = (struct cuts){.load = load};
    memory_create(&c->file_memory, FILE_ROOM);
    memory_create(&c->upper_memory, FILE_ROOM);
    sweep_begin(&c->file, &load->trace, &c->file_memory);
    if (load->snapshot.started)
        sweep_begin(&c->upper, &load->upper_trace, &c->upper_memory);
    oracle_create(&c->oracle, load);
}

void cuts_end(struct cuts *c)
{
    oracle_destroy(&c->oracle);
    sweep_end(&c->file);
    sweep_end(&c->upper);
    memory_destroy(&c->file_memory);
    memory_destroy(&c->upper_memory);
}

void cuts_to(struct cuts *c, uint64_t moment)
{
    c->moment = moment;
    c->state = (struct state){&c->file_memory, load_has_upper(c->load, moment) ? &c->upper_memory : NULL};
    sweep_to(&c->file, moment);
    if (c->load->snapshot.started)
        sweep_to(&c->upper, moment);
    oracle_to(&c->oracle, moment);
}

size_t cuts_open(const struct cuts *c)
{
    return sweep_open(&c->file) + (c->load->snapshot.started ? sweep_open(&c->upper) : 0);
}

void cuts_make(struct cuts *c, enum survive survive, struct dice *dice)
{
    sweep_cut(&c->file, survive, dice);
    if (c->load->snapshot.started)
        sweep_cut(&c->upper, survive, dice);
}

void cuts_restore(struct cuts *c)
{
    sweep_restore(&c->file);
    if (c->load->snapshot.started)
        sweep_restore(&c->upper);
}
