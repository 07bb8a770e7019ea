// Enrolls students in courses, as examples/courses does in Go: a course has a
// number of places, and a student takes three courses at most:
//
//	node courses.mjs nats://127.0.0.1:4222 define go 2
//	node courses.mjs nats://127.0.0.1:4222 enroll go alice
//
// Install the NATS client first, with Node.js 22 or newer: npm ci
//
// However many run concurrently, both rules hold.
import { connect } from "@nats-io/transport-node";
import { decide } from "./decide.mjs";
import { token } from "./token.mjs";

const maxCourses = 3;

const [url, what, course, last, ...rest] = process.argv.slice(2);
if (rest.length > 0 || last === undefined || !(what === "enroll" || (what === "define" && /^\d+$/.test(last)))) {
  console.error("usage: node courses.mjs URL define COURSE PLACES, or: node courses.mjs URL enroll COURSE STUDENT");
  process.exit(2);
}
const nc = await connect({ servers: url, maxReconnectAttempts: -1 }).catch((err) => {
  console.error(`no connection to ${url}: ${err.message}; is a node running there?`);
  process.exit(1);
});
const courseLock = `course.${token(course)}`;

function define(places) {
  return decide(nc, 0, [{ kinds: ["defined"], locks: [courseLock] }], (known) => {
    if (known.length > 0) throw new Error("the course is defined already");
    return { kind: "defined", payload: { course, places }, locks: [courseLock] };
  });
}

// The decision depends on what happened to the course, and on the other courses
// of the student.
function enroll(student) {
  const studentLock = `student.${token(student)}`;
  const items = [
    { kinds: ["defined", "enrolled"], locks: [courseLock] },
    { kinds: ["enrolled"], locks: [studentLock] },
  ];
  return decide(nc, 0, items, (known) => {
    const defined = known.find((tx) => tx.kind === "defined");
    if (!defined) throw new Error("there is no such course");
    const enrolled = known.filter((tx) => tx.kind === "enrolled").map((tx) => JSON.parse(tx.text));
    const inCourse = enrolled.filter((e) => e.course === course);
    if (inCourse.some((e) => e.student === student)) throw new Error("the student takes the course already");
    if (inCourse.length >= JSON.parse(defined.text).places) throw new Error("the course is full");
    if (enrolled.filter((e) => e.student === student).length >= maxCourses) {
      throw new Error(`the student takes ${maxCourses} courses already`);
    }
    return { kind: "enrolled", payload: { course, student }, locks: [courseLock, studentLock] };
  });
}

try {
  await (what === "define" ? define(Number(last)) : enroll(last));
  console.log("done");
} catch (err) {
  console.error(err.message);
  process.exitCode = 1;
}
await nc.close();
