/* MAML's meta-gradient from the files of golden cases, in plain C, and whether it is the expected one.
 *
 *     cc -std=c99 -O2 -o golden golden.c -lm
 *     ./golden answers.safetensors suite/cases/base suite/cases/steps-10
 *
 * For exact second order, tanh and mse: any depth, any steps, any step sizes, weight decay. Nothing but
 * tensors.safetensors is read. The answers are written as well, for npmeta golden check. (Numbers are
 * taken for little-endian, as they are in the files.)
 *
 * Hessian products are complex steps of the gradient, H v = Im grad(phi + i h v) / h, so that there is one
 * function to write: the gradient of a network, in complex numbers.
 */
#include <complex.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_LAYERS = 16, MOST_DIMS = 4 };
static const double h = 1e-100; /* its square is nothing beside 1 */
static const double tolerance = 1e-12; /* the case allows 1e-8; this program does better */

static void fail(const char *what, const char *which) {
    fprintf(stderr, "golden: %s %s\n", what, which);
    exit(2);
}

static void *allocate(size_t n, size_t size) {
    void *memory = calloc(n + 1, size);
    if (!memory) fail("out of", "memory");
    return memory;
}

/* --- safetensors: the length of a header in eight bytes, the header (JSON), the numbers -------------- */

typedef struct { char *header, *numbers; } File;
typedef struct { double *at; long n_dims, shape[MOST_DIMS]; } Tensor; /* at is NULL if there is none */

static File open_case(const char *folder) {
    char path[4096];
    snprintf(path, sizeof path, "%s/tensors.safetensors", folder);
    FILE *file = fopen(path, "rb");
    unsigned char first[8];
    if (!file || fread(first, 1, 8, file) != 8) fail("cannot read", path);
    uint64_t length = 0;
    for (int i = 7; i >= 0; i--) length = length << 8 | first[i];
    fseek(file, 0, SEEK_END);
    long size = ftell(file) - 8;
    if (length > (uint64_t)size) fail("no safetensors in", path);
    fseek(file, 8, SEEK_SET);
    File opened = {allocate(length, 1), allocate((size_t)size - length, 1)};
    if (fread(opened.header, 1, length, file) != length ||
        fread(opened.numbers, 1, (size_t)size - length, file) != (size_t)size - length)
        fail("cannot read", path);
    fclose(file);
    return opened;
}

/* "name":{"dtype":"F64","shape":[4,6],"data_offsets":[0,192]} */
static Tensor find(File file, const char *name) {
    char entry[300];
    Tensor found = {NULL, 0, {0}};
    snprintf(entry, sizeof entry, "\"%s\":{\"dtype\":\"F64\",\"shape\":[", name);
    char *place = strstr(file.header, entry);
    if (!place) return found;
    place += strlen(entry);
    while (*place != ']' && found.n_dims < MOST_DIMS) {
        found.shape[found.n_dims++] = strtol(place, &place, 10);
        if (*place == ',') place++;
    }
    place = strstr(place, "\"data_offsets\":[") + strlen("\"data_offsets\":[");
    long start = strtol(place, &place, 10), end = strtol(place + 1, NULL, 10);
    found.at = allocate((size_t)(end - start), 1);
    memcpy(found.at, file.numbers + start, (size_t)(end - start));
    return found;
}

static Tensor get(File file, const char *prefix, const char *rest) {
    char name[200];
    snprintf(name, sizeof name, "%s%s", prefix, rest);
    Tensor found = find(file, name);
    if (!found.at) fail("there is no", name);
    return found;
}

/* --- the network ------------------------------------------------------------------------------------ */

typedef struct { int n_layers; long width[MOST_LAYERS + 1], n_params; } Net;

static Net network_of(File file) {
    Net net = {0, {0}, 0};
    for (char name[40]; net.n_layers < MOST_LAYERS; net.n_layers++) {
        snprintf(name, sizeof name, "theta.%d.weight", net.n_layers);
        Tensor W = find(file, name);
        if (!W.at) break;
        net.width[net.n_layers] = W.shape[0];
        net.width[net.n_layers + 1] = W.shape[1];
        net.n_params += (W.shape[0] + 1) * W.shape[1];
        free(W.at);
    }
    return net;
}

/* prefix.0.weight, prefix.0.bias, prefix.1.weight, ... one after another; NULL if there is none. */
static double *parameters(File file, Net net, const char *prefix) {
    double *flat = allocate((size_t)net.n_params, sizeof *flat), *at = flat;
    for (int l = 0; l < net.n_layers; l++)
        for (int bias = 0; bias < 2; bias++) {
            char name[200];
            snprintf(name, sizeof name, "%s.%d.%s", prefix, l, bias ? "bias" : "weight");
            Tensor part = find(file, name);
            if (!part.at) return NULL;
            long n = net.width[l + 1] * (bias ? 1 : net.width[l]);
            memcpy(at, part.at, (size_t)n * sizeof *at);
            at += n;
            free(part.at);
        }
    return flat;
}

/* The gradient of the mean squared error, over rows and outputs, of a tanh network: g (n_params). */
static void gradient(Net net, const double complex *phi, Tensor x, Tensor y, double complex *g) {
    int L = net.n_layers;
    long widest = 0;
    for (int l = 0; l <= L; l++) widest = net.width[l] > widest ? net.width[l] : widest;
    double complex *a = allocate((size_t)(widest * (L + 1)), sizeof *a); /* a[l * widest + i] */
    double complex *delta = allocate((size_t)widest, sizeof *delta);
    double complex *a_bar = allocate((size_t)widest, sizeof *a_bar);
    memset(g, 0, (size_t)net.n_params * sizeof *g);
    for (long row = 0; row < x.shape[0]; row++) {
        for (long i = 0; i < net.width[0]; i++) a[i] = x.at[row * net.width[0] + i];
        const double complex *W = phi;
        for (int l = 0; l < L; l++) { /* z = a W + b, a = tanh(z) but for the last */
            long n_in = net.width[l], n_out = net.width[l + 1];
            double complex *in = a + l * widest, *out = in + widest;
            for (long j = 0; j < n_out; j++) {
                double complex z = W[n_in * n_out + j];
                for (long i = 0; i < n_in; i++) z += in[i] * W[i * n_out + j];
                out[j] = l < L - 1 ? ctanh(z) : z;
            }
            W += (n_in + 1) * n_out;
        }
        long n_outputs = net.width[L];
        for (long j = 0; j < n_outputs; j++) { /* the derivative of the loss by z_L */
            double complex residual = a[L * widest + j] - y.at[row * n_outputs + j];
            delta[j] = 2 * residual / (double)(x.shape[0] * n_outputs);
        }
        double complex *g_W = g + net.n_params;
        for (int l = L - 1; l >= 0; l--) {
            long n_in = net.width[l], n_out = net.width[l + 1];
            const double complex *in = a + l * widest;
            W -= (n_in + 1) * n_out;
            g_W -= (n_in + 1) * n_out;
            for (long j = 0; j < n_out; j++) g_W[n_in * n_out + j] += delta[j];
            for (long i = 0; i < n_in; i++) {
                a_bar[i] = 0;
                for (long j = 0; j < n_out; j++) {
                    g_W[i * n_out + j] += in[i] * delta[j];
                    a_bar[i] += delta[j] * W[i * n_out + j];
                }
            }
            for (long i = 0; i < n_in; i++) delta[i] = a_bar[i] * (1 - in[i] * in[i]); /* tanh' */
        }
    }
    free(a), free(delta), free(a_bar);
}

/* --- MAML ------------------------------------------------------------------------------------------- */

/* The mean over tasks of the derivative of the query loss at phi_S by theta. */
static double *meta_gradient(File file, Net net) {
    long P = net.n_params, S = 0, T = 0;
    double *step_size[1000], *theta = parameters(file, net, "theta");
    double w = get(file, "inner_weight_decay", "").at[0];
    double *mean = allocate((size_t)P, sizeof *mean), *lambda = allocate((size_t)P, sizeof *lambda);
    char name[100];
    for (; S < 1000; S++) {
        snprintf(name, sizeof name, "step_size.%03ld", S);
        if (!(step_size[S] = parameters(file, net, name))) break;
    }
    double complex *phi = allocate((size_t)((S + 1) * P), sizeof *phi); /* phi_0, .., phi_S */
    double complex *moved = allocate((size_t)P, sizeof *moved), *g = allocate((size_t)P, sizeof *g);
    for (;; T++) {
        snprintf(name, sizeof name, "task.%03ld", T);
        char first[120];
        snprintf(first, sizeof first, "%s.support.x", name);
        if (!find(file, first).at) break;
        Tensor support_x = get(file, name, ".support.x"), support_y = get(file, name, ".support.y");
        Tensor query_x = get(file, name, ".query.x"), query_y = get(file, name, ".query.y");

        for (long p = 0; p < P; p++) phi[p] = theta[p];
        for (long s = 0; s < S; s++) {
            double complex *now = phi + s * P, *next = now + P;
            gradient(net, now, support_x, support_y, g);
            for (long p = 0; p < P; p++) next[p] = now[p] - step_size[s][p] * (g[p] + w * now[p]);
        }
        gradient(net, phi + S * P, query_x, query_y, g);
        for (long p = 0; p < P; p++) lambda[p] = creal(g[p]);
        for (long s = S - 1; s >= 0; s--) { /* lambda -= (H_s + w)(alpha_s lambda) */
            for (long p = 0; p < P; p++) moved[p] = phi[s * P + p] + I * h * step_size[s][p] * lambda[p];
            gradient(net, moved, support_x, support_y, g);
            for (long p = 0; p < P; p++)
                lambda[p] -= cimag(g[p]) / h + w * step_size[s][p] * lambda[p];
        }
        for (long p = 0; p < P; p++) mean[p] += lambda[p];
    }
    for (long p = 0; p < P; p++) mean[p] /= (double)T;
    return mean;
}

/* |c - g| / |g| */
static double misfit(const double *c, const double *g, long n) {
    double off = 0, size = 0;
    for (long i = 0; i < n; i++) off += (c[i] - g[i]) * (c[i] - g[i]), size += g[i] * g[i];
    return sqrt(off / size);
}

/* --- what is asked for ------------------------------------------------------------------------------ */

typedef struct { const char *name; Net net; double *gradient; } Answer;

static void write_answers(const char *path, const Answer *answers, int n) {
    FILE *file = fopen(path, "wb");
    if (!file) fail("cannot write", path);
    static char header[1 << 20];
    size_t length = 1, start = 0;
    header[0] = '{';
    for (int i = 0; i < n; i++) {
        size_t end = start + (size_t)answers[i].net.n_params * sizeof(double);
        length += (size_t)snprintf(
            header + length, sizeof header - length,
            "%s\"%s/meta_grad\":{\"dtype\":\"F64\",\"shape\":[%ld],\"data_offsets\":[%zu,%zu]}",
            i ? "," : "", answers[i].name, answers[i].net.n_params, start, end);
        if (length > sizeof header - 16) fail("too many cases for", path);
        start = end;
    }
    header[length++] = '}';
    while (length % 8) header[length++] = ' ';
    for (int i = 0; i < 8; i++) fputc((int)(length >> (8 * i) & 255), file);
    fwrite(header, 1, length, file);
    for (int i = 0; i < n; i++)
        fwrite(answers[i].gradient, sizeof(double), (size_t)answers[i].net.n_params, file);
    if (fclose(file)) fail("cannot write", path);
}

int main(int argc, char **argv) {
    if (argc < 3) fail("usage:", "golden ANSWERS CASE ...");
    Answer *answers = allocate((size_t)argc, sizeof *answers);
    int n = 0, n_wrong = 0;
    for (int i = 2; i < argc; i++) {
        File file = open_case(argv[i]);
        Net net = network_of(file);
        const char *slash = strrchr(argv[i], '/');
        Answer answer = {slash ? slash + 1 : argv[i], net, meta_gradient(file, net)};
        double *expected = parameters(file, net, "expected.meta_grad");
        double *wrong = parameters(file, net, "wrong.first_order.meta_grad");
        if (!expected) fail("nothing is expected in", argv[i]);
        double r = misfit(answer.gradient, expected, net.n_params);
        int right = r <= tolerance; /* false for NaN */
        printf("%s  %-28s  %.1e\n", right ? "PASS" : "FAIL", answer.name, r);
        n_wrong += !right;
        /* A check that lets a known mistake pass checks nothing. */
        if (wrong && misfit(wrong, expected, net.n_params) <= tolerance) fail("blind to first order:", argv[i]);
        answers[n++] = answer;
    }
    write_answers(argv[1], answers, n);
    return n_wrong > 0;
}
