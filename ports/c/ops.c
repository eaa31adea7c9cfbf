#include "ops.h"

#include <string.h>

#include "attention.h"
#include "batch_norm.h"
#include "block.h"
#include "feed_forward.h"
#include "gated_norm.h"
#include "norms.h"
#include "numbers.h"
#include "quantise.h"
#include "scratch.h"

enum { WIDEST = 1 << 20 };

static const struct tensor *input(const struct tensor *given, const char *name)
{
    const struct tensor *found = find(given, name);
    if (!found)
        refuse("tensor %s is missing", name);
    return found;
}

static real *input_like(const struct tensor *given, const char *name, const struct tensor *like)
{
    const struct tensor *found = input(given, name);
    if (found->count != like->count)
        refuse("%s has %zu elements; it must have %zu, as %s has", name, found->count, like->count, like->name);
    return decode(found);
}

/* The cotangent of an output; zeros where the message says that nothing reads it. */
static real *cotangent(const struct json *message, const struct tensor *given, const char *name, const struct tensor *like)
{
    const struct json *cotangents = json_get(message, "cotangents");
    for (const struct json *each = cotangents ? cotangents->first : NULL; each; each = each->next)
        if (each->text && strcmp(each->text, name) == 0)
            return input_like(given, name, like);
    return reals(like->count);
}

static const struct tensor *row_parameter(const struct tensor *given, const char *name, size_t d)
{
    const struct tensor *found = find(given, name);
    if (found && found->count != d)
        refuse("%s has %zu elements; it must have %zu, as x's last axis has", name, found->count, d);
    return found;
}

static void output(struct tensor **outputs, const char *name, const struct tensor *like, const real *made)
{
    put(outputs, name, like, encode(like->dtype, like->count, made));
}

static void output_if(const struct tensor *given, struct tensor **outputs, const char *name, const real *made)
{
    if (given)
        output(outputs, name, given, made);
}

static size_t axis_from_last(const struct tensor *tensor, size_t back)
{
    if (tensor->rank < back)
        refuse("%s has %zu axes; it must have %zu at least", tensor->name, tensor->rank, back);
    return tensor->shape[tensor->rank - back];
}

static bool casts_first(const char *order)
{
    return strcmp(order, "cast_then_scale") == 0;
}

static bool rounds(const struct json *settings, const char *what)
{
    return json_get(settings, what) && strcmp(json_text(settings, what), "rounded") == 0;
}

/* q and, where none is given, its scales. */
static void output_quantised(const struct json *settings, const struct tensor *given, const struct tensor *x, real *y,
                             struct tensor **outputs)
{
    size_t d = axis_from_last(x, 1);
    struct quantise how;
    if (!quantise_as(&how, json_text(settings, "quantised_dtype"), json_text(settings, "scaling"), x->count / d, d))
        refuse("%zu features cannot be quantised as asked", d);
    how.bound = json_get(settings, "scale_ub") ? (real)json_number(settings, "scale_ub") : (real)INFINITY;
    struct tensor of_q = *x, of_scale = *x;
    of_q.dtype = how.dtype;
    of_scale.dtype = F32;
    of_scale.shape[x->rank - 1] = d / how.size;
    of_scale.count = how.groups;
    real *scales = reals(how.groups);
    const struct tensor *scale = find(given, "scale");
    if (rounds(settings, "y"))
        round_all(x->dtype, x->count, y);
    if (scale)
        for (size_t i = 0; i < how.groups; i++)
            scales[i] = *decode(scale);
    else
        find_scales(how, y, scales);
    divide(how, y, scales);
    output(outputs, "q", &of_q, y);
    output(outputs, "scale", &of_scale, scales);
}

static struct norm how_to_norm(const struct json *message, const struct json *settings, bool centred, const struct tensor *x)
{
    size_t d = axis_from_last(x, 1);
    if (d == 0)
        refuse("x has no features");
    size_t group = json_get(settings, "group_size") ? json_size(settings, "group_size") : d;
    if (group == 0 || d % group)
        refuse("group_size is %zu; it must divide %zu", group, d);
    return (struct norm){
        .centred = centred,
        .casts_first = casts_first(json_text(message, "order")),
        .dtype = x->dtype,
        .eps = (real)json_number(message, "eps"),
        .weight_offset = (real)json_number(message, "weight_offset"),
        .rows = x->count / d,
        .d = d,
        .group = group,
    };
}

/* y's dtype: promoted where what multiplies last says so. */
static struct tensor promoted(struct norm how, const struct tensor *x, const struct tensor *widest)
{
    struct tensor of_y = *x;
    if (how.casts_first && widest && widest->dtype < of_y.dtype)
        of_y.dtype = widest->dtype;
    return of_y;
}

/* With a residual s = x + residual is normalised, and returned beside y; without one, s = x. */
static void answer_norm(const struct json *message, const struct json *settings, bool centred, bool adds, bool quantised,
                        bool backward, const struct tensor *given, struct tensor **outputs)
{
    const struct tensor *x = input(given, "x"), *residual = adds ? input(given, "residual") : NULL;
    struct norm how = how_to_norm(message, settings, centred, x);
    size_t d = how.d;
    const struct tensor *weight = row_parameter(given, "weight", d), *bias = row_parameter(given, "bias", d);
    const struct tensor *widest = weight ? weight : bias;
    real *s = decode(x), *w = weight ? decode(weight) : NULL, *y = reals(x->count);
    if (residual) {
        s = added(x->count, s, input_like(given, "residual", x));
        output(outputs, "residual_out", residual, s);
        if (rounds(settings, "sum"))
            round_all(residual->dtype, x->count, s);
    }
    struct tensor of_y = promoted(how, x, widest);
    norm(how, s, w, bias ? decode(bias) : NULL, y);
    if (quantised)
        output_quantised(settings, given, x, y, outputs);
    else
        output(outputs, "y", &of_y, y);
    if (!backward)
        return;
    real *ds = reals(x->count), *dweight = reals(d), *dbias = reals(d);
    norm_vjp(how, cotangent(message, given, "dy", x), s, w, ds, dweight, dbias);
    if (residual) {
        ds = added(x->count, ds, cotangent(message, given, "dresidual_out", x));
        output(outputs, "dresidual", residual, ds);
    }
    output(outputs, "dx", x, ds);
    output_if(weight, outputs, "dweight", dweight);
    output_if(bias, outputs, "dbias", dbias);
}

static void answer_gated_norm(const struct json *message, const struct json *settings, bool backward,
                              const struct tensor *given, struct tensor **outputs)
{
    const struct tensor *x = input(given, "x"), *gate = input(given, "gate");
    struct gated_norm how = {
        .norm = how_to_norm(message, settings, false, x),
        .norm_first = json_true(settings, "norm_before_gate"),
        .silu = strcmp(json_text(settings, "activation"), "silu") == 0,
    };
    const struct tensor *weight = row_parameter(given, "weight", how.norm.d);
    const real *of_x = decode(x), *of_gate = input_like(given, "gate", x), *w = weight ? decode(weight) : NULL;
    real *y = reals(x->count);
    struct tensor of_y = how.norm_first ? *x : promoted(how.norm, x, weight);
    gated_norm(how, of_x, of_gate, w, y);
    output(outputs, "y", &of_y, y);
    if (!backward)
        return;
    real *dx = reals(x->count), *dgate = reals(x->count), *dweight = reals(how.norm.d);
    gated_norm_vjp(how, input_like(given, "dy", x), of_x, of_gate, w, dx, dgate, dweight);
    output(outputs, "dx", x, dx);
    output(outputs, "dgate", gate, dgate);
    output_if(weight, outputs, "dweight", dweight);
}

static void answer_batch_norm(const struct json *message, const struct json *settings, bool backward,
                              const struct tensor *given, struct tensor **outputs)
{
    const struct tensor *x = input(given, "x");
    size_t d = axis_from_last(x, 1);
    if (d == 0 || x->count == 0)
        refuse("x has no features, or no rows");
    const struct tensor *weight = row_parameter(given, "weight", d), *bias = row_parameter(given, "bias", d);
    const struct tensor *mean = row_parameter(given, "running_mean", d), *variance = row_parameter(given, "running_var", d);
    if (!mean || !variance)
        refuse("running_mean or running_var is missing");
    struct batch_norm how = {
        .training = json_true(settings, "training"),
        .eps = (real)json_number(message, "eps"),
        .weight = weight ? decode(weight) : NULL,
        .bias = bias ? decode(bias) : NULL,
        .rows = x->count / d,
        .d = d,
    };
    if (how.training) {
        how.momentum = (real)json_number(settings, "momentum");
        how.unbiased = json_true(settings, "unbiased");
        if (how.unbiased && how.rows == 1)
            refuse("one row has no unbiased variance");
    }
    real *of_x = decode(x), *y = reals(x->count), *new_mean = decode(mean), *new_variance = decode(variance);
    batch_norm(how, of_x, new_mean, new_variance, y);
    output(outputs, "y", x, y);
    output(outputs, "running_mean", mean, new_mean);
    output(outputs, "running_var", variance, new_variance);
    if (!backward)
        return;
    real *dx = reals(x->count), *dweight = reals(d), *dbias = reals(d);
    batch_norm_vjp(how, input_like(given, "dy", x), of_x, decode(mean), decode(variance), dx, dweight, dbias);
    output(outputs, "dx", x, dx);
    output_if(weight, outputs, "dweight", dweight);
    output_if(bias, outputs, "dbias", dbias);
}

/* A member of an object that may have none of this name. */
static size_t size_or(const struct json *object, const char *name, size_t instead)
{
    return json_get(object, name) ? json_size(object, name) : instead;
}

static real number_or(const struct json *object, const char *name, real instead)
{
    return json_get(object, name) ? (real)json_number(object, name) : instead;
}

static void answer_rope(const struct json *settings, bool backward, const struct tensor *given, struct tensor **outputs)
{
    const struct tensor *x = input(given, "x");
    size_t d_head = axis_from_last(x, 1), heads = axis_from_last(x, 2), s = axis_from_last(x, 3);
    struct rope how = {
        .batch = x->count ? x->count / (s * heads * d_head) : 0,
        .s = s,
        .heads = heads,
        .d_head = d_head,
        .position = json_size(settings, "position"),
        .rotary_features = size_or(settings, "rotary_features", d_head),
        .base = (real)json_number(settings, "base"),
        .interleaved = json_true(settings, "interleaved"),
    };
    if (how.rotary_features % 2 || how.rotary_features > d_head)
        refuse("%zu features of %zu are to be turned; they must be even, for they are turned in pairs", how.rotary_features, d_head);
    real *made = reals(x->count);
    rope(how, decode(x), made);
    output(outputs, "y", x, made);
    if (!backward)
        return;
    how.backwards = true;
    rope(how, input_like(given, "dy", x), made);
    output(outputs, "dx", x, made);
}

static void answer_attention(const struct json *settings, bool backward, const struct tensor *given, struct tensor **outputs)
{
    const struct tensor *q = input(given, "q"), *k = input(given, "k"), *mask = find(given, "key_mask");
    const struct tensor *sink = find(given, "sink");
    struct attention how = {
        .s = axis_from_last(q, 3),
        .t = axis_from_last(k, 3),
        .h = axis_from_last(q, 2),
        .h_kv = axis_from_last(k, 2),
        .d_head = axis_from_last(q, 1),
        .window = size_or(settings, "window", 0),
        .causal = json_true(settings, "causal"),
        .scale = number_or(settings, "attention_scale", 1 / sqrt((real)axis_from_last(q, 1))),
        .softcap = number_or(settings, "softcap", 0),
        .key_mask = mask ? decode(mask) : NULL,
        .sink = sink ? decode(sink) : NULL,
    };
    if (!q->count || !k->count || how.h % how.h_kv || how.s > how.t)
        refuse("%zu query heads over %zu key heads, %zu queries over %zu keys", how.h, how.h_kv, how.s, how.t);
    how.batch = q->count / (how.s * how.h * how.d_head);
    if (k->count != how.batch * how.t * how.h_kv * how.d_head || (mask && mask->count != how.batch * how.t))
        refuse("k or key_mask is not of the shape that goes with q");
    if (sink && sink->count != how.h)
        refuse("sink has %zu elements; it must have %zu, one a head", sink->count, how.h);
    real *of_q = decode(q), *of_k = decode(k), *of_v = input_like(given, "v", k), *y = reals(q->count);
    struct attended made = attention(how, of_q, of_k, of_v, y);
    output(outputs, "y", q, y);
    if (!backward)
        return;
    real *dq = reals(q->count), *dk = reals(k->count), *dv = reals(k->count), *dsink = reals(how.h);
    attention_vjp(how, made, input_like(given, "dy", q), of_q, of_k, of_v, dq, dk, dv, dsink);
    output_if(sink, outputs, "dsink", dsink);
    output(outputs, "dq", q, dq);
    output(outputs, "dk", k, dk);
    output(outputs, "dv", input(given, "v"), dv);
}

static void answer_swiglu(bool backward, const struct tensor *given, struct tensor **outputs)
{
    const struct tensor *gate = input(given, "gate");
    real *of_gate = decode(gate), *of_up = input_like(given, "up", gate), *y = reals(gate->count);
    swiglu(gate->count, of_gate, of_up, y);
    output(outputs, "y", gate, y);
    if (!backward)
        return;
    real *dgate = reals(gate->count), *dup = reals(gate->count);
    swiglu_vjp(gate->count, input_like(given, "dy", gate), of_gate, of_up, dgate, dup);
    output(outputs, "dgate", gate, dgate);
    output(outputs, "dup", gate, dup);
}

static void answer_gelu(const struct json *settings, bool backward, const struct tensor *given, struct tensor **outputs)
{
    const struct tensor *x = input(given, "x");
    bool approximate = json_true(settings, "approximate");
    real *of_x = decode(x), *y = reals(x->count), *dx = reals(x->count);
    gelu(approximate, x->count, of_x, y);
    output(outputs, "y", x, y);
    if (!backward)
        return;
    gelu_vjp(approximate, x->count, input_like(given, "dy", x), of_x, dx);
    output(outputs, "dx", x, dx);
}

/* So bounded, the product of any three is far from an overflow. */
static size_t width(const struct json *config, const char *name)
{
    size_t size = json_size(config, name);
    if (size > WIDEST)
        refuse("%s is %zu; it must be %d at most", name, size, WIDEST);
    return size;
}

static struct block block_of(const struct json *settings, const struct tensor *given)
{
    const struct tensor *x = input(given, "x"), *k_cache = find(given, "k_cache"), *v_cache = find(given, "v_cache");
    const struct json *config = json_get(settings, "config");
    if (!config)
        refuse("the settings have no config");
    const char *feed_forward = json_text(config, "feed_forward"), *pairs = json_text(config, "rope");
    const struct json *over = json_get(config, "qk_norm_over"), *has_offset = json_get(config, "qk_norm_offset");
    const char *placement = json_get(config, "placement") ? json_text(config, "placement") : "pre";
    bool sandwich = strcmp(placement, "sandwich") == 0, parallel = strcmp(placement, "parallel") == 0;
    bool of_silu = strcmp(feed_forward, "swiglu") == 0, of_gelu = strcmp(feed_forward, "geglu_tanh") == 0;
    size_t d_head = width(config, "d_head");
    real offset = (real)json_number(config, "weight_offset");
    struct block b = {
        .like = *x,
        .s = axis_from_last(x, 2),
        .past = k_cache ? axis_from_last(k_cache, 3) : 0,
        .d_model = width(config, "d_model"),
        .n_heads = width(config, "n_heads"),
        .n_kv_heads = width(config, "n_kv_heads"),
        .d_head = d_head,
        .d_ff = width(config, "d_ff"),
        .position = json_size(settings, "position"),
        .norms_before = strcmp(placement, "pre") == 0 || sandwich || parallel,
        .norms_branch = strcmp(placement, "branch") == 0 || sandwich,
        .norms_sum = strcmp(placement, "post") == 0,
        .parallel = parallel,
        .layer_norm = strcmp(json_text(config, "norm"), "layer_norm") == 0,
        .rotary_features = size_or(config, "rotary_features", d_head),
        .window = size_or(config, "window", 0),
        .casts_first = casts_first(json_text(config, "order")),
        .qk_norm = json_true(config, "qk_norm"),
        .qk_norm_over_all = over && strcmp(json_text(config, "qk_norm_over"), "all_heads") == 0,
        .rope = strcmp(pairs, "none") != 0,
        .interleaved = strcmp(pairs, "interleaved") == 0,
        .gated = of_silu || of_gelu,
        .swiglu = of_silu,
        .gelu_tanh = of_gelu || strcmp(feed_forward, "gelu_tanh") == 0,
        .causal = json_true(config, "causal"),
        .sink = json_true(config, "sink"),
        .eps = (real)json_number(config, "eps"),
        .weight_offset = offset,
        .qk_norm_offset = !has_offset || json_true(config, "qk_norm_offset") ? offset : 0,
        .rope_base = (real)json_number(config, "rope_base"),
        .attention_scale = number_or(config, "attention_scale", 1 / sqrt((real)d_head)),
        .softcap = number_or(config, "softcap", 0),
        .given = given,
        .layer = "",
    };
    if (!x->count || axis_from_last(x, 1) != b.d_model)
        refuse("x is empty, or its last axis is not d_model");
    if (!b.n_kv_heads || b.n_heads % b.n_kv_heads || !b.d_head || (b.rope && (b.rotary_features % 2 || b.rotary_features > b.d_head)))
        refuse("%zu query heads over %zu key heads of %zu features", b.n_heads, b.n_kv_heads, b.d_head);
    b.batch = x->count / (b.s * b.d_model);
    size_t cached = b.batch * b.past * b.n_kv_heads * b.d_head;
    if (b.past && (!cached || !v_cache || k_cache->count != cached || v_cache->count != cached))
        refuse("k_cache and v_cache must be of shape [*batch, past, n_kv_heads, d_head]");
    return b;
}

/* A block, or a stack of them: each one's out is the next one's x. */
static void answer_blocks(const struct json *message, const struct json *settings, bool backward, const struct tensor *given,
                          struct tensor **outputs)
{
    struct block b = block_of(settings, given);
    bool stack = strcmp(json_text(message, "op"), "pre_ln_stack") == 0, tapped = json_true(message, "taps");
    size_t n_layers = stack ? json_size(settings, "n_layers") : 1;
    struct stages *made = take(n_layers + 1, sizeof *made);
    const char **names = take(n_layers + 1, sizeof *names);
    const real *stream = decode(&b.like);
    for (size_t i = 0; i < n_layers; i++) {
        b.layer = names[i] = stack ? numbered(i) : "";
        made[i] = block(&b, stream, tapped ? outputs : NULL);
        stream = made[i].out;
    }
    output(outputs, "out", &b.like, stream);
    if (!backward)
        return;
    const real *cotangent = input_like(given, "dout", &b.like);
    for (size_t i = n_layers; i-- > 0;) {
        b.layer = names[i];
        cotangent = block_vjp(&b, &made[i], cotangent, outputs);
    }
    output(outputs, "dx", &b.like, cotangent);
}

/* Of the outputs, those asked for and the taps. */
static struct tensor *wanted(const struct json *asked, const struct tensor *outputs)
{
    struct tensor *kept = NULL;
    for (const struct json *name = asked->first; name; name = name->next) {
        const struct tensor *found = name->text ? find(outputs, name->text) : NULL;
        if (!found)
            refuse("there is no output %s", name->text ? name->text : "without a name");
        put(&kept, found->name, found, found->bytes);
    }
    for (const struct tensor *tap = outputs; tap; tap = tap->next)
        if (strncmp(tap->name, "tap.", 4) == 0)
            put(&kept, tap->name, tap, tap->bytes);
    return kept;
}

struct tensor *answer(const struct json *message, const struct tensor *given)
{
    const char *op = json_text(message, "op");
    const struct json *asked = json_get(message, "asked"), *gradients = json_get(message, "gradients");
    const struct json *settings = json_get(message, "settings");
    if (!asked || !gradients || !settings)
        refuse("the message has no asked, no gradients, or no settings");
    bool backward = gradients->first, quantised = strncmp(op, "quantised_", 10) == 0;
    const char *row_norm = quantised ? op + 10 : op;
    bool adds = strncmp(row_norm, "add_", 4) == 0;
    row_norm += adds ? 4 : 0;
    struct tensor *outputs = NULL;
    if (strcmp(row_norm, "rms_norm") == 0 || strcmp(row_norm, "layer_norm") == 0)
        answer_norm(message, settings, *row_norm == 'l', adds, quantised, backward, given, &outputs);
    else if (strcmp(op, "gated_rms_norm") == 0)
        answer_gated_norm(message, settings, backward, given, &outputs);
    else if (strcmp(op, "batch_norm") == 0)
        answer_batch_norm(message, settings, backward, given, &outputs);
    else if (strcmp(op, "rope") == 0)
        answer_rope(settings, backward, given, &outputs);
    else if (strcmp(op, "attention") == 0)
        answer_attention(settings, backward, given, &outputs);
    else if (strcmp(op, "swiglu") == 0)
        answer_swiglu(backward, given, &outputs);
    else if (strcmp(op, "gelu") == 0)
        answer_gelu(settings, backward, given, &outputs);
    else if (strcmp(op, "pre_ln_block") == 0 || strcmp(op, "pre_ln_stack") == 0)
        answer_blocks(message, settings, backward, given, &outputs);
    else
        skip("no op %s", op);
    return wanted(asked, outputs);
}
