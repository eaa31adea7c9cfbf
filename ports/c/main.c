/* A port in plain C: JSON lines on stdin and stdout, tensors in safetensors files. docs/protocol.md is all it knows. */

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "ops.h"
#include "safetensors.h"
#include "scratch.h"

#ifdef __clang__
#define COMPILER "clang " __clang_version__
#else
#define COMPILER "gcc " __VERSION__
#endif

static const struct json *message; /* the one in hand; NULL until its line is read */

static const char abilities[] =
    "\"protocol\": 2, \"name\": \"c\", \"device\": \"cpu\", "
    "\"ops\": [\"rms_norm\", \"layer_norm\", \"add_rms_norm\", \"add_layer_norm\", \"gated_rms_norm\", "
    "\"quantised_rms_norm\", \"quantised_add_rms_norm\", "
    "\"batch_norm\", \"rope\", \"attention\", \"swiglu\", \"gelu\", \"pre_ln_block\", \"pre_ln_stack\"], "
    "\"dtypes\": [\"float64\", \"float32\", \"bfloat16\", \"float16\"], "
    "\"orders\": [\"cast_then_scale\", \"scale_then_cast\"], \"weight_offsets\": [0, 1], "
    "\"sums\": [\"rounded\", \"unrounded\", \"float32\"], \"ys\": [\"rounded\", \"unrounded\"], "
    "\"features\": [\"window\", \"sink\", \"softcap\", \"attention_scale\", \"rotary_features\", \"qk_norm_over\", "
    "\"qk_norm_offset\", \"placement\", \"norm_bias\"], \"groups\": true, \"gradients\": true, \"taps\": true";

static void hello(void)
{
    const char *device = json_text(message, "device");
    if (strcmp(device, "cpu") != 0)
        refuse("no device %s: this is plain C", device);
    printf("{\"type\": \"hello\", %s, \"versions\": {\"cc\": ", abilities);
    json_print(stdout, COMPILER);
    puts("}}");
}

static void answer_case(void)
{
    if (strcmp(json_text(message, "layout"), "contiguous") != 0)
        skip("no layout but contiguous");
    const struct tensor *given = read_tensors(json_text(message, "inputs"));
    int in_double = strcmp(json_text(message, "dtype"), "float64") == 0;
    const struct tensor *outputs = in_double ? answer_double(message, given) : answer_float(message, given);
    write_tensors(json_text(message, "outputs"), outputs);
    printf("{\"type\": \"done\", \"id\": %zu, \"overwrote\": []}\n", json_size(message, "id")); /* every input is const */
}

/* Instead of an answer: why there is none, with the case's id where the line could be read so far. */
static void apologise(const char *type, const char *field)
{
    const struct json *id = message && message->kind == JSON_OBJECT ? json_get(message, "id") : NULL;
    printf("{\"type\": \"%s\", \"id\": ", type);
    if (id && id->kind == JSON_NUMBER)
        printf("%.0f", id->number);
    else
        printf("null");
    printf(", \"%s\": ", field);
    json_print(stdout, reason);
    puts("}");
}

/* False after bye. */
static bool handle(const char *line, size_t length)
{
    message = json_parse(line, length);
    const char *type = json_text(message, "type");
    if (strcmp(type, "bye") == 0)
        return false;
    if (strcmp(type, "hello") == 0)
        hello();
    else if (strcmp(type, "case") == 0)
        answer_case();
    else
        refuse("no message of type %s is known", type);
    return true;
}

int main(void)
{
    static char *line;
    static size_t room;
    ssize_t length;
    volatile bool over = false;
    while (!over && (length = getline(&line, &room, stdin)) > 0) {
        message = NULL;
        switch (setjmp(given_up)) {
        case ANSWERED:
            over = !handle(line, (size_t)length);
            break;
        case SKIPPED:
            apologise("skip", "reason");
            break;
        default:
            apologise("error", "message");
        }
        fflush(stdout);
        release();
    }
    free(line);
    return 0;
}
