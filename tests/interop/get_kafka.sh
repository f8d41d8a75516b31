#!/usr/bin/env bash
# Puts Apache Kafka (its jars) into .tools/kafka. Needs Java 17 and Maven.
set -euo pipefail
cd "$(dirname "$0")/../.."

[[ -n $(compgen -G '.tools/kafka/lib/kafka_2.13-*.jar') ]] && exit 0

mkdir -p .tools/kafka
cat > .tools/kafka/pom.xml <<'POM'
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>tests</groupId>
  <artifactId>kafka</artifactId>
  <version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>4.1.1</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId>
      <artifactId>slf4j-simple</artifactId>
      <version>1.7.36</version>
    </dependency>
  </dependencies>
</project>
POM
mvn -q -B -f .tools/kafka/pom.xml dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory=lib
