// One append, one read and one conflict through the C client for NATS:
//
//	cc -Wall -Wextra -Werror -o main main.c -lnats && ./main nats://127.0.0.1:4222
//
// It ends with 0 if every answer is as it should be.
#include <nats/nats.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const int64_t patience_ms = 60000;

static void check(int ok, const char *what, const char *saw)
{
    if (!ok) {
        fprintf(stderr, "%s: %s\n", what, saw == NULL ? "(nothing)" : saw);
        exit(1);
    }
}

static void ok(natsStatus s, const char *what)
{
    check(s == NATS_OK, what, natsStatus_GetText(s));
}

static void header_is(natsMsg *m, const char *key, const char *want)
{
    const char *value = NULL;
    natsStatus s = natsMsgHeader_Get(m, key, &value);
    check(s == NATS_OK && strcmp(value, want) == 0, key, value);
}

// The data of a message is followed by a NUL, which the library adds.
static void says(natsMsg *m, const char *part)
{
    check(strstr(natsMsg_GetData(m), part) != NULL, part, natsMsg_GetData(m));
}

// first_txid gives the number after the first "txid": of an answer.
static unsigned long long first_txid(natsMsg *m)
{
    static const char key[] = "\"txid\":";
    const char *at = strstr(natsMsg_GetData(m), key);
    check(at != NULL, "no txid", natsMsg_GetData(m));
    return strtoull(at + sizeof(key) - 1, NULL, 10);
}

// append asks for one transaction that writes two locks at mark 0.
static natsMsg *append(natsConnection *nc, const char *payload)
{
    natsMsg *request = NULL, *answer = NULL;
    ok(natsMsg_Create(&request, "cantus.append.0", NULL, payload, (int) strlen(payload)), "create a message");
    ok(natsMsgHeader_Set(request, "Cantus-High-Water-Mark", "0"), "set a header");
    ok(natsMsgHeader_Add(request, "Cantus-Write-Lock", "account.42"), "add a header");
    ok(natsMsgHeader_Add(request, "Cantus-Write-Lock", "journal.>"), "add a header");
    ok(natsMsgHeader_Set(request, "Written-In", "C"), "set a header");
    ok(natsConnection_RequestMsg(&answer, nc, request, patience_ms), "request");
    natsMsg_Destroy(request);
    return answer;
}

static void read_back(natsConnection *nc)
{
    natsInbox *inbox = NULL;
    natsSubscription *sub = NULL;
    natsMsg *m = NULL;

    ok(natsInbox_Create(&inbox), "create an inbox");
    ok(natsConnection_SubscribeSync(&sub, nc, inbox), "subscribe");
    ok(natsConnection_PublishRequestString(nc, "cantus.read.0", inbox, "{\"from\":1,\"wait\":\"30s\"}"), "ask for a read");

    ok(natsSubscription_NextMsg(&m, sub, patience_ms), "read");
    check(strcmp(natsMsg_GetData(m), "hello from C") == 0, "payload", natsMsg_GetData(m));
    header_is(m, "Cantus-Txid", "1");
    header_is(m, "Cantus-Partition", "0");
    header_is(m, "Cantus-Kind", "tx");
    header_is(m, "Cantus-High-Water-Mark", "0");
    header_is(m, "Nats-Msg-Id", "cantus.0.1");
    header_is(m, "Written-In", "C");
    header_is(m, "Cantus-Write-Lock", "account.42,journal.>");
    natsMsg_Destroy(m);

    ok(natsSubscription_NextMsg(&m, sub, patience_ms), "the read's end");
    check(natsMsg_GetDataLength(m) == 0, "the read's end", natsMsg_GetData(m));
    header_is(m, "Status", "204");
    header_is(m, "Cantus-Next", "2");
    header_is(m, "Cantus-High-Water-Mark", "1");
    natsMsg_Destroy(m);
    natsSubscription_Destroy(sub);
    natsInbox_Destroy(inbox);
}

int main(int argc, char **argv)
{
    natsConnection *nc = NULL;
    natsMsg *answer = NULL;
    const char *code = NULL;

    check(argc == 2, "usage: main URL", "");
    ok(natsConnection_ConnectTo(&nc, argv[1]), "connect");

    answer = append(nc, "hello from C");
    check(first_txid(answer) == 1, "txid", natsMsg_GetData(answer));
    says(answer, "\"partition\":0");
    check(natsMsgHeader_Get(answer, "Nats-Service-Error-Code", &code) != NATS_OK, "refused", code);
    natsMsg_Destroy(answer);

    read_back(nc);

    answer = append(nc, "too late");
    header_is(answer, "Nats-Service-Error-Code", "409");
    says(answer, "\"reason\":\"conflict\"");
    says(answer, "\"lock\":\"account.42\"");
    check(first_txid(answer) == 1, "txid", natsMsg_GetData(answer));
    natsMsg_Destroy(answer);

    natsConnection_Destroy(nc);
    nats_Close();
    puts("ok");
    return 0;
}
